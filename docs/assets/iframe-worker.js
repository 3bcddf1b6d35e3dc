// Pages read from a folder may not start workers, so there the theme's search runs in a frame that behaves like one.
// mkdocs-material's own stand-in comes from a server elsewhere; it knows this one by its name.
if (location.protocol === 'file:') {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = Object.assign(document.createElement('iframe'), { hidden: true });
      document.documentElement.append(frame);
      const inside = frame.contentWindow, page = frame.contentDocument;
      const load = src => new Promise((resolve, reject) => {
        page.head.append(Object.assign(page.createElement('script'), { src, onload: resolve, onerror: reject }));
      });
      // one after the other; a worker would wait for it
      inside.importScripts = (...urls) => urls.reduce((before, src) => before.then(() => load(src)), Promise.resolve());
      inside.postMessage = data => this.dispatchEvent(new MessageEvent('message', { data }));
      this.frame = frame;
      this.ready = load(String(url));
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent('message', { data })));
    }

    terminate() { this.frame.remove(); }
  };
  window.Worker = window.IFrameWorker;
}
