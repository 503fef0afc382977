"""Fifty readers at a time, real connections: all get the news, none is left behind."""

import gc
import threading
import time
import tracemalloc

import pytest
from tests.report.live.serving import Reader, Served, until
from tests.report.run import samples

from signalprop.watching.file.writer import RunWriter

READERS = 50


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.sp"


def test_fifty_readers_all_get_the_news(path):
    with Served([path]) as served, RunWriter(path, log=samples.LOG, every=0.05) as writer:
        samples.record(writer, range(0, 500, 50))
        writer.flush()
        readers = [Reader(served) for _ in range(READERS)]
        first = [reader.until(lambda n: n["runs"][0]["state"] == "open") for reader in readers]
        assert {n["runs"][0]["generation"] for n in first} == {first[0]["runs"][0]["generation"]}
        assert served.live.hub.readers == READERS
        before = first[0]["runs"][0]["cursor"]
        late = []

        def wait(reader):
            reader.until(lambda n: n["runs"][0]["cursor"] != before)
            late.append(time.perf_counter())

        threads = [threading.Thread(target=wait, args=(reader,)) for reader in readers]
        for thread in threads:
            thread.start()
        start = time.perf_counter()
        samples.record(writer, range(500, 550, 50))
        writer.flush()
        for thread in threads:
            thread.join(20)
        assert len(late) == READERS
        assert max(late) - start < 5.0  # 0.4 s between looks; the rest is a busy machine
        # all ask for the same picture: it is made once
        asked = [threading.Thread(target=served.get, args=("/api/timeline",)) for _ in readers]
        for thread in asked:
            thread.start()
        for thread in asked:
            thread.join(30)
        assert len(served.live.answers.kept._found) == 1
        for reader in readers:
            reader.close()
        until(lambda: served.live.hub.readers == 0)
        assert not served.live.answers.kept._making


def test_news_do_not_pile_up(path):
    samples.write(path, steps=range(0, 500, 50))
    with Served([path]) as served:
        sleeping = [Reader(served) for _ in range(10)]
        for reader in sleeping:
            reader.news()
        gc.collect()
        tracemalloc.start()
        try:
            news = served.live.hub
            for k in range(2000):
                news._news = b"data: %d\n\n" % k
                news._version += 1
            time.sleep(0.2)
            assert tracemalloc.get_traced_memory()[0] < 4 << 20
        finally:
            tracemalloc.stop()
        for reader in sleeping:
            reader.close()


def test_it_ends_at_once_although_pages_follow(path):
    samples.write(path, steps=range(0, 500, 50))
    with Served([path]) as served:
        readers = [Reader(served) for _ in range(READERS)]
        for reader in readers:
            reader.news()
        assert served.stop() < 3.0
        assert all(reader.news() is None for reader in readers)
        for reader in readers:
            reader.close()


def test_too_many(path, monkeypatch):
    monkeypatch.setattr("signalprop.report.live.app.MOST", 2)
    samples.write(path, steps=range(0, 500, 50))
    with Served([path]) as served:
        readers = [Reader(served) for _ in range(2)]
        for reader in readers:
            reader.news()
        status, _, body = served.get("/events")
        assert status == 503
        assert body == b"2 pages follow already.\n"
        for reader in readers:
            reader.close()
        until(lambda: served.live.hub.readers == 0)
