// Runs functions of a library that this machine's Python can't load; `check_wheels.py` talks to it over a pipe.
//
//     library_host LIBRARY
//
// A call is, all integers int64: a name (64 bytes); the count of buffers and, of each, size and bytes; the size of the
// struct and its bytes; the count of its pointers and, of each, place in the struct, buffer, place in the buffer. The
// answer is what the function returned and the bytes of all buffers. A function without a struct has size 0.

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#if defined(_WIN32)
#include <fcntl.h>
#include <io.h>
#include <windows.h>
#else
#include <dlfcn.h>
#endif

static void read_bytes(void *to, size_t size) {
  if (size && fread(to, 1, size, stdin) != size) _Exit(0);  // the other side is gone
}
static int64_t read_int() {
  int64_t value;
  read_bytes(&value, sizeof value);
  return value;
}

int main(int, char **arguments) {
#if defined(_WIN32)
  _setmode(_fileno(stdin), _O_BINARY);
  _setmode(_fileno(stdout), _O_BINARY);
  const HMODULE library = LoadLibraryA(arguments[1]);
  if (!library) return fprintf(stderr, "LoadLibrary: error %lu\n", GetLastError()), 1;
#else
  void *library = dlopen(arguments[1], RTLD_NOW);
  if (!library) return fprintf(stderr, "%s\n", dlerror()), 1;
#endif
  for (;;) {
    char name[64];
    read_bytes(name, sizeof name);
    std::vector<std::vector<char>> buffers(read_int());
    for (auto &buffer : buffers) {
      buffer.resize(read_int());
      read_bytes(buffer.data(), buffer.size());
    }
    std::vector<char> structure(read_int());
    read_bytes(structure.data(), structure.size());
    for (int64_t left = read_int(); left > 0; left--) {
      const int64_t place = read_int(), buffer = read_int(), offset = read_int();
      const char *pointer = buffers[buffer].data() + offset;
      memcpy(structure.data() + place, &pointer, sizeof pointer);
    }
#if defined(_WIN32)
    void *function = (void *)GetProcAddress(library, name);
#else
    void *function = dlsym(library, name);
#endif
    if (!function) return fprintf(stderr, "no function %s\n", name), 1;
    const int64_t result = structure.empty() ? ((int64_t (*)())function)() : ((int (*)(void *))function)(structure.data());
    fwrite(&result, sizeof result, 1, stdout);
    for (auto &buffer : buffers) fwrite(buffer.data(), 1, buffer.size(), stdout);
    fflush(stdout);
  }
}
