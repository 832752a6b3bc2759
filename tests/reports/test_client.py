"""The client of a service: faults of service, proxy and environment are said as such, keys not."""

import gzip

import pytest
import torch
from dassl_blackbox.console import tool
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.oracle import Prompt, services
from services import DATA, Served, at, embed_texts, oracle_at
from support import run, sentence

KEY = 'sk-a/b&c"d-of-a-test'
SECRET = "hunter2"
PAGE = b"<html><head><title>413 Too &lt; large</title></head>\r\n<body>nginx</body></html>"
CLOSED = {"Connection": "close"}  # what the client leaves unread is no error of the server
PROXIES = [f"{name}_PROXY" for name in ("ALL", "HTTP", "HTTPS", "NO")]


@pytest.fixture
def served(service, monkeypatch):
    """A service, a key that has to be written otherwise in URLs and JSON, and no proxy."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    server = service()
    monkeypatch.setenv("BLACKBOX_KEY", KEY)
    return server


def said(capsys, data_root, out, server, *options, patience=0.2):
    """The sentence that zero-shot over a service ends with."""
    given = [*at(server, PATIENCE=patience), *options]
    return sentence(capsys, "ZeroshotOracle", data_root, out, *given)


NEW = "https://new.example/v2/embeddings?v=1"
ESCAPES = "a\x1b[2Jb\x9bc\u202ed\u2028e"
ANSWERS = [  # status, headers, content; what is said
    (401, {}, {"detail": "x" * 390 + KEY}, "xxx….*Check ORACLE.URL, ORACLE.API and BLACKBOX_KEY."),
    (403, {}, b"sk-a%2fb%26c%22d-of-a-test sk-a/b&amp;c&quot;d-of-a-test", "403: … …. Check"),
    (413, {}, PAGE, "413 Too < large. .*ORACLE.BATCH puts less into a request"),
    (400, {}, {"error": {"message": f"upstream: {PAGE.decode()}"}}, "400: 413 Too < large."),
    (308, {"Location": NEW}, b"", "points to .*v=1, where no key is carried. Check ORACLE.URL"),
    (400, {}, {"detail": ESCAPES}, r"400: a\\x1b\[2Jb\\x9bc\\u202ed e."),
    (200, {**CLOSED, "Content-Encoding": "gzip"}, gzip.compress(b" " * 10**6), r"answer \(gzip\)"),
    (400, {**CLOSED, "Content-Encoding": "br"}, b"\x1b", "400: Bad Request."),
    (200, CLOSED, b" " * 10**4, "more than 5,000 bytes"),
]


@pytest.mark.parametrize("status, headers, content, words", ANSWERS)
def test_an_answer_that_is_none_is_explained(
    status, headers, content, words, served, digits, monkeypatch
):
    monkeypatch.setattr(services, "LARGEST", 5_000)
    with pytest.raises(BlackBoxError, match=words) as raised:
        served.always = status, headers, content
        oracle = oracle_at(served, PATIENCE=0.2)
        oracle.query(oracle.upload(digits[:3]), Prompt())
    told = str(raised.value)
    assert told.isprintable() and "sk-a" not in told and "html" not in told


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_not_set_is_said_so(status, served, data_root, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("BLACKBOX_KEY")
    served.always = status, {}, {"detail": "no"}
    assert "BLACKBOX_KEY, which is not set" in said(capsys, data_root, tmp_path, served)


SPOILED = [
    ("ALL_PROXY", f"socks5://u:{SECRET}@localhost:1", "'httpx[socks]'"),
    ("HTTP_PROXY", f"teapot://u:{SECRET}@localhost", "http://HOST:PORT"),
    ("https_proxy", f"http://u:{SECRET}/@localhost", "http://HOST:PORT"),
    ("SSL_CERT_FILE", "/nowhere", "The environment allows no connection"),
]


@pytest.mark.parametrize("name, value, words", SPOILED)
def test_what_the_environment_spoils_is_named(
    name, value, words, served, data_root, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv(name, value)
    told = said(capsys, data_root, tmp_path, served)
    assert name in told and words in told and SECRET not in told and "ORACLE.URL" not in told


URLS = [
    f"http://me:{SECRET}@127.0.0.1:9/v1",
    f"http://me:{SECRET}/x@127.0.0.1:9",
    f"me:{SECRET}@localhost",
    f"https://localhost/v1?api-version=1&key={SECRET}",
    f"https://localhost/v1?Api_Key={SECRET}",
    f"https://localhost/v1#access_token={SECRET}",
    f"https://localhost/v1?jwt={SECRET}",
    f"http://me%3A{SECRET}%40localhost/v1",
    f"https://localhost/v1?k%65y='{SECRET}'",
]


@pytest.mark.parametrize("url", URLS)
def test_a_secret_in_the_url_is_refused_and_written_nowhere(
    url, served, data_root, tmp_path, capsys
):
    given = [*at(served), "ORACLE.URL", url]
    assert run("ZeroshotOracle", data_root, tmp_path / "out", *given) == 1
    out, err = capsys.readouterr()
    assert "ORACLE.URL is not shown here" in err and "BLACKBOX_KEY" in err
    assert SECRET not in out + err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", [url for url in URLS if "//" in url])
def test_a_secret_in_the_wrong_place_is_shown_nowhere(url, data_root, tmp_path, capsys):
    for flags, options in (
        ((), ["MODEL.BACKBONE.NAME", url]),
        ((), ["ORACLE.API", url]),
        ((), [f"ORACLE.URL={url}"]),
        ((), [url, "ORACLE.URL"]),
        (("--trainer", url), []),
        (("--config-file", url), []),
    ):
        assert run("ZIP", data_root, tmp_path / "out", *options, flags=flags) == 1
        out, err = capsys.readouterr()
        logs = [path.read_text() for path in tmp_path.glob("out/*") if path.is_file()]
        assert SECRET not in out + err + "".join(logs), options


def test_a_damaged_configuration_shows_no_line_of_its_own(data_root, tmp_path, capsys):
    (tmp_path / "own.yaml").write_text(f'ORACLE:\n  URL: "https://me:{SECRET}@localhost\n')
    flags = ("--config-file", tmp_path / "own.yaml")
    told = sentence(capsys, "ZeroshotOracle", data_root, tmp_path / "out", flags=flags)
    assert "own.yaml is not YAML" in told and SECRET not in told


def test_the_path_comes_before_the_query(data_root, tmp_path, capsys):
    paths = []
    server = Served(lambda service, path, body: paths.append(path) or (400, {}, {"detail": "no"}))
    try:
        for url in ("/v1?api-version=2", "/v1/?api-version=2#part", "/v1#part"):
            said(capsys, data_root, tmp_path, server, "ORACLE.URL", server.url + url)
        given = "ORACLE.API", "hf", "ORACLE.URL", f"{server.url}/whole/?v=1"
        said(capsys, data_root, tmp_path, server, *given)
    finally:
        server.close()
    asked = "/v1/embeddings?api-version=2"
    assert paths == [asked, asked, "/v1/embeddings", "/whole/?v=1"]


def test_a_key_that_others_can_read_is_noted(served, data_root, tmp_path, capsys, monkeypatch):
    served.always = 400, {}, {"detail": "no"}

    def noted(url):
        options = [*at(served, PATIENCE=0.2), "ORACLE.URL", url]
        assert run("ZeroshotOracle", data_root, tmp_path, *options) == 1
        return "BLACKBOX_KEY crosses the network in clear" in capsys.readouterr().out

    assert not noted(served.url) and not noted(served.url.replace("127.0.0.1", "localhost"))
    monkeypatch.setenv("http_proxy", served.url)
    assert noted("http://models.example/v1") and noted(served.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert not noted(served.url)
    monkeypatch.setenv("BLACKBOX_KEY", "")
    assert not noted("http://models.example/v1")


def embeddings(rows):
    """A service that makes its answers `[N, E]` of what stands in the request."""

    def answer(service, path, body):
        service.pictures += sum(item.startswith(DATA) for item in body["input"])
        data = [{"index": i, "embedding": r.tolist()} for i, r in enumerate(rows(body["input"]))]
        return 200, {}, {"data": data}

    return Served(answer)


def scores(service, path, body):
    """The same for every picture."""
    service.pictures += 1
    labels = body["parameters"]["candidate_labels"]
    return 200, {}, [{"label": label, "score": 1 / len(labels)} for label in labels]


def alike():
    return embeddings(lambda items: torch.ones(len(items), 4))


BLIND = {
    "alike": (alike, "openai", 32),
    "alike, one by one": (alike, "openai", 1),
    "a text tower": (lambda: embeddings(embed_texts), "openai", 32),
    "noise": (lambda: embeddings(lambda items: torch.randn(len(items), 64)), "openai", 32),
    "alike scores": (lambda: Served(scores), "hf", 32),
}


@pytest.mark.parametrize("make, api, batch", BLIND.values(), ids=BLIND)
def test_answers_that_are_not_about_the_pictures_end_the_run(
    make, api, batch, data_root, tmp_path, capsys
):
    server = make()
    options = at(server, api=api, BATCH=batch, IMAGES="data_uri", CACHE=tmp_path / "cache")
    try:
        told = sentence(capsys, "ZeroshotOracle", data_root, tmp_path / "out", *options)
    finally:
        server.close()
    assert "not about what pictures show" in told and "ORACLE.IMAGES data_uri" in told
    assert server.pictures == 33 if batch == 32 and api == "openai" else server.pictures < 10


def test_pictures_that_look_alike_may_be_answered_alike(digits):
    server = alike()
    try:
        oracle = oracle_at(server)
        images = digits[:1].repeat(20, 1, 1, 1)
        images[:, 0, 0, 0] = torch.linspace(-1, 1, 20)
        assert oracle.query(oracle.upload(images), Prompt()).shape == (1, 20, 3)
    finally:
        server.close()


def test_tools_print_no_escapes_either(capsys):
    def fails():
        raise BlackBoxError("a\x1b[2J\nb")

    assert tool(fails) == 1
    assert capsys.readouterr().err == "error: a\\x1b[2J b\n"
