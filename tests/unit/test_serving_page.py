"""The page: its files are served under a policy that they keep, and no text of a document becomes markup."""

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from actors.serving.page_routes import FOLDER, add_routes, page_files

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "pipeline/serving/page"
SCRIPTS = sorted(PAGE.glob("*.js"))
MARKUP = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|setHTML|createContextualFragment|DOMParser|srcdoc|document\.write|"
    r"\beval\b|\bFunction\(|(?:setTimeout|setInterval)\([\"'`]|\.style\b|javascript:|\.href\b|\.src\b"
)


@pytest.fixture(scope="module")
def client():
    app = FastAPI()
    add_routes(app)
    return TestClient(app)


def test_every_file_is_served_with_its_type_and_the_policy(client):
    kinds = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    for file in PAGE.iterdir():
        path = "/" if file.name == "index.html" else FOLDER + file.name
        response = client.get(path)
        assert response.status_code == 200 and response.content == file.read_bytes()
        assert response.headers["Content-Type"].startswith(kinds[file.suffix])
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Referrer-Policy"] == "no-referrer"
        policy = response.headers["Content-Security-Policy"].split("; ")
        assert {
            "default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "img-src 'self'",
            "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
        } <= set(policy) and "unsafe" not in str(policy)  # fmt: skip
    assert len(page_files()) == len(list(PAGE.iterdir()))


def test_a_file_is_sent_again_only_if_it_has_changed(client):
    first = client.get("/")
    tag = first.headers["ETag"]
    assert first.headers["Cache-Control"] == "no-cache"
    for given in (tag, f'"other", W/{tag}', "*"):
        again = client.get("/", headers={"If-None-Match": given})
        assert again.status_code == 304 and again.content == b"" and again.headers["ETag"] == tag
    assert client.get("/", headers={"If-None-Match": '"other"'}).status_code == 200
    assert client.get(f"{FOLDER}page.css").headers["ETag"] != tag
    assert client.head("/").status_code == 200 and client.post("/").status_code == 405


@pytest.mark.parametrize("path", ["index.html", "nothing.js", "../config.py", "%2e%2e/config.py", "__init__.py", ""])
def test_no_other_file_is_served(client, path):
    assert client.get(FOLDER + path).status_code == 404


def test_the_page_names_only_its_own_files_and_has_no_inline_script_or_style():
    text = (PAGE / "index.html").read_text(encoding="utf-8")
    named = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert sorted(named) == ["page/icon.svg", "page/page.css", "page/page.js"]
    assert re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL) == [""]
    assert "<style" not in text and not re.search(r"\s(?:style|on\w+)=", text)
    style = (PAGE / "page.css").read_text(encoding="utf-8")
    assert "url(" not in style and "@import" not in style


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_makes_no_markup_of_texts_and_imports_its_neighbours_only(path):
    code = path.read_text(encoding="utf-8")
    assert not MARKUP.search(code)
    imported = re.findall(r'\bfrom "([^"]+)"', code)
    assert {f"./{script.name}" for script in SCRIPTS} >= set(imported) and "import(" not in code
    assert not re.search(r"[\"'`](?:https?:)?//", code)


def test_the_files_of_the_page_are_part_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["pipeline.serving"]
    assert all(any(fnmatch(f"page/{file.name}", pattern) for pattern in patterns) for file in PAGE.iterdir())
