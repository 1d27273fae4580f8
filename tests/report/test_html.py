from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from mpc_imaging.report.joint import receiver_report, write_joint_report

from .conftest import make_inference, make_run


class Page(HTMLParser):
    """Tags, their attributes and the visible text of a page."""

    def __init__(self, path):
        super().__init__()
        self.source, self.tags, self.words = path.read_text(encoding="utf-8"), [], []
        self.feed(self.source)
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th", "p", "li", "dt", "dd", "b", "span", "h1", "h2"):
            self.words.append(" ")

    def handle_data(self, data):
        self.words.append(data)

    def pictures(self):
        return [attrs["alt"] for tag, attrs in self.tags if tag == "img"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = make_inference(tmp_path_factory.mktemp("run"))
    write_joint_report(run.folder, run.settings, run.plaintext)
    return Page(run.folder / "report.html")


def test_the_page_says_what_happened(page):
    assert "sample_run" in page.text
    assert re.search(r"Secure and plaintext agree on \d+ of 60 labels; AUC", page.text)
    assert "each image's owner, for its own images" in page.text
    assert "every receiver (hospital_a, hospital_b)" in page.text
    assert "48 test" in page.text.replace("\u00a0", " ")
    assert "Online time 2.25 s" in page.text and "Sent by the dealer 140 kB" in page.text
    assert "What the numbers mean" in page.text
    assert "Insecure simulation" not in page.text


def test_the_page_needs_nothing_from_outside_and_no_script(page):
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    sources = [attrs.get("src") or attrs.get("href") for _, attrs in page.tags if {"src", "href"} & attrs.keys()]
    assert sources and all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert "url(" not in page.source and "@import" not in page.source


def test_figures_are_those_that_the_revealed_values_allow(page, training):
    assert page.pictures() == [
        "Confusion matrices",
        "ROC curves",
        "Secure against plaintext logits, and their differences",
        "Cost of each layer",
    ]
    write_joint_report(training.folder, training.settings, training.plaintext)
    assert Page(training.folder / "report.html").pictures() == ["Confusion matrices", "Training curves"]


def test_tags_are_balanced(page):
    void = {"meta", "img", "br"}
    opened = sum(tag not in void for tag, _ in page.tags)
    assert opened == len(re.findall(r"</\w+>", page.source))


def test_names_are_escaped(tmp_path):
    run = make_run(tmp_path)
    run.settings.name = "<script>alert(1)</script>"
    run.settings.data.class_names = ["<i>healthy", "a & b"]
    run.write_own_predictions()
    run.write_result("hospital_a")
    write_joint_report(run.folder, run.settings, run.plaintext)
    page = Page(run.folder / "report.html")
    assert "<script>alert(1)</script>" in page.text and "a & b" in page.text
    assert "script" not in {tag for tag, _ in page.tags} and "i" not in {tag for tag, _ in page.tags}


def test_a_missing_value_is_a_dash_with_its_reason_in_a_note(training):
    write_joint_report(training.folder, training.settings, training.plaintext)
    page = Page(training.folder / "report.html")
    titles = [attrs["title"] for tag, attrs in page.tags if tag == "abbr"]
    assert "needs individual scores; only counts were revealed" in titles
    assert "AUC –1 " in page.text and " needs individual scores; only counts were revealed" in page.text
    assert "only compute parties measure it" in titles


def test_a_receivers_page_has_no_plaintext_column(run):
    result = run.write_result("hospital_a", cost=None)
    receiver_report(run.party("hospital_a"), run.settings, result)
    page = Page(run.party("hospital_a") / "report.html")
    assert "Seen by hospital_a" in page.text and "Plaintext" not in page.text
    assert "On the 12 whose outputs and labels are known here" in page.text
    assert "Not compared: there is no plaintext run" in page.text


def test_a_multiclass_page_names_its_averages(tmp_path):
    run = make_run(tmp_path, classes=5)
    run.write_own_predictions()
    run.write_result("hospital_a")
    write_joint_report(run.folder, run.settings, run.plaintext)
    page = Page(run.folder / "report.html")
    assert "Averages over all classes" in page.text and "The positive class" not in page.text
    assert "ROC curves" in page.pictures()


def test_a_run_that_revealed_nothing_still_has_a_page(tmp_path):
    run = make_run(tmp_path)
    run.write_result("hospital_a")
    write_joint_report(run.folder, run.settings, None)
    page = Page(run.folder / "report.html")
    assert "no metric of it was revealed" in page.text and page.pictures() == []


def test_what_owners_found_in_their_images(tmp_path):
    run = make_inference(tmp_path)
    write_joint_report(run.folder, run.settings, run.plaintext)
    assert "What to look at in the images" not in Page(run.folder / "report.html").text
    run.write_result("hospital_a", quality=[{"kind": "blank: one grey level", "split": "test", "count": 1234}])
    write_joint_report(run.folder, run.settings, run.plaintext)
    text = Page(run.folder / "report.html").text
    assert "What to look at in the images" in text and "hospital_a test blank: one grey level 1,234" in text
    receiver_report(run.party("hospital_b"), run.settings, run.write_result("hospital_b"))
    assert "What to look at" not in Page(run.party("hospital_b") / "report.html").text, "others' counts stay with them"
