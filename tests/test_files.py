"""Files and folders that are there whole or not at all."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from visionssm import files
from visionssm.files import (
    added_files,
    check_extendable,
    check_replaceable,
    check_writable,
    leftovers,
    link_whole,
    replaced_folder,
    write_whole,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize('content', [b'a\r\nb', 'a\r\nb', lambda stream: (stream.write(b'a\r\n'), stream.write(b'b'))])
def test_content_of_every_kind(tmp_path, content):
    write_whole(tmp_path / 'file', content)
    assert (tmp_path / 'file').read_bytes() == b'a\r\nb' and names(tmp_path) == ['file']


def test_permissions_are_those_of_any_new_file(tmp_path):
    write_whole(tmp_path / 'file', 'text')
    (tmp_path / 'other').write_text('text')
    assert (tmp_path / 'file').stat().st_mode == (tmp_path / 'other').stat().st_mode


@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), KeyboardInterrupt()])
def test_a_file_is_whole_or_as_before(tmp_path, error):
    (tmp_path / 'file').write_text('old')

    def write(stream):
        stream.write(b'half')
        raise error

    with pytest.raises(type(error)):
        write_whole(tmp_path / 'file', write)
    assert (tmp_path / 'file').read_text() == 'old' and names(tmp_path) == ['file']


def test_what_the_disk_said_is_not_lost_in_the_error_of_a_writer(tmp_path):
    def write(stream):
        stream.stream = Full()
        try:
            stream.write(b'x')
        except OSError:
            raise RuntimeError('unexpected pos') from None

    with pytest.raises(OSError, match='No space left'):
        write_whole(tmp_path / 'file', write)
    assert names(tmp_path) == []


class Full:
    def write(self, data):
        raise OSError(28, 'No space left on device')


def test_two_threads_write_the_same_file(tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'fsync', lambda descriptor: None)  # hundreds of them take minutes on a slow disk

    def many(letter):
        for _ in range(200):
            write_whole(tmp_path / 'file', letter * 5000)
            assert (tmp_path / 'file').read_text() in ('a' * 5000, 'b' * 5000)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(many, 'ab'))
    assert names(tmp_path) == ['file']


def test_what_a_killed_process_left_is_found(tmp_path):
    code = f"""
import os
from visionssm.files import write_whole
write_whole({str(tmp_path / 'file[1]')!r}, lambda stream: (stream.write(b'half'), os._exit(9)))
"""
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 9
    write_whole(tmp_path / 'other', 'text')
    (left,) = leftovers(tmp_path, 'file[1]')
    assert names(tmp_path) == sorted([left.name, 'other']) and leftovers(tmp_path) == [left]
    assert leftovers(tmp_path, 'other') == []


@pytest.mark.parametrize('linked', [True, False])
def test_a_second_name(tmp_path, monkeypatch, linked):
    def refuse(*args):
        raise OSError(95, 'Operation not supported')

    if not linked:
        monkeypatch.setattr(os, 'link', refuse)
    (tmp_path / 'source').write_text('new')
    (tmp_path / 'second').write_text('old')
    link_whole(tmp_path / 'source', tmp_path / 'second')
    assert (tmp_path / 'second').read_text() == 'new' and names(tmp_path) == ['second', 'source']
    assert (tmp_path / 'second').samefile(tmp_path / 'source') == linked


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError])
def test_failure_leaves_the_old_folder(tmp_path, error):
    output = tmp_path / 'out'
    output.mkdir()
    (output / 'table').write_text('old')
    for context in (replaced_folder, added_files):
        with pytest.raises(error), context(output) as folder:
            (folder / 'table').write_text('half')
            raise error
        assert names(tmp_path) == ['out'] and names(output) == ['table']
        assert (output / 'table').read_text() == 'old'


def test_folders_are_replaced_or_added_to(tmp_path):
    output = tmp_path / 'new' / 'out'
    with replaced_folder(output) as folder:
        (folder / 'one').write_text('1')
    with added_files(output) as folder:
        (folder / 'two').write_text('2')
    assert names(output) == ['one', 'two']
    with replaced_folder(output) as folder:
        (folder / 'three').write_text('3')
    assert names(output) == ['three'] and names(tmp_path / 'new') == ['out']


def test_what_may_be_replaced(tmp_path):
    output = tmp_path / 'out'
    check_replaceable(output, {'table'}, 'run')
    output.mkdir()
    (output / 'table').write_text('old')
    check_replaceable(output, {'table'}, 'run')
    with pytest.raises(ValueError, match='out holds table, which no walk wrote'):
        check_replaceable(output, {'picture'}, 'walk')
    with pytest.raises(ValueError, match='table is a file'):
        check_replaceable(output / 'table', {'table'}, 'run')
    with pytest.raises(ValueError, match='table/below cannot be written'):
        check_replaceable(output / 'table' / 'below', {'table'}, 'run')
    assert names(tmp_path) == ['out'] and names(output) == ['table']


def test_needs_the_standard_library_alone():
    code = 'import runpy, sys; runpy.run_path(sys.argv[1]); print({"torch", "numpy", "timm"} & set(sys.modules))'
    result = subprocess.run([sys.executable, '-c', code, files.__file__], capture_output=True, text=True, check=True)
    assert result.stdout == 'set()\n'


def test_a_folder_that_files_are_added_to_is_new_or_of_an_earlier_run(tmp_path):
    walk = {'marks': ['steps', 'map'], 'maker': 'walk'}
    for folder in (tmp_path, tmp_path / 'new', tmp_path / 'new' / 'below'):
        check_extendable(folder, **walk)
    (tmp_path / 'notes').write_text('mine')
    with pytest.raises(ValueError, match='holds notes, which no walk wrote'):
        check_extendable(tmp_path, **walk)
    for path in (tmp_path / 'notes', tmp_path / 'notes' / 'below'):
        with pytest.raises(ValueError, match='notes is a file'):
            check_extendable(path, **walk)
    (tmp_path / 'map').write_text('')
    check_extendable(tmp_path, **walk)
    check_writable(tmp_path / 'notes')
    for path, message in ((tmp_path, 'is a folder'), (tmp_path / 'notes' / 'below', 'notes is a file')):
        with pytest.raises(ValueError, match=message):
            check_writable(path)


def test_folders_are_made_and_go_where_nothing_came_of_them(tmp_path):
    write_whole(tmp_path / 'a' / 'b' / 'file', 'text')
    for place in (tmp_path / 'a' / 'c' / 'd', tmp_path / 'e' / 'f'):
        for block in (lambda path: write_whole(path, fail), lambda path: stopped(added_files(path))):
            with pytest.raises(KeyboardInterrupt):
                block(place)
        with pytest.raises(KeyboardInterrupt):
            stopped(replaced_folder(place))
    assert names(tmp_path) == ['a'] and names(tmp_path / 'a') == ['b'] and names(tmp_path / 'a' / 'b') == ['file']


def fail(stream):
    raise KeyboardInterrupt


def stopped(context):
    with context:
        raise KeyboardInterrupt
