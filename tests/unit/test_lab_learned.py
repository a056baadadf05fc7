"""What was learned about each paper is read off its published results, and says of every claim what it can."""

from vlws.lab import evidence, learned


def test_every_published_claim_stands_where_its_verdict_puts_it(workspace):
    (lesson,) = [one for one in learned.lessons() if one["slug"].startswith("04")]
    (result,) = [one for one in evidence.published() if one["slug"] == lesson["slug"]]
    assert [row.id for row in lesson["rows"]] == [m["id"] for m in result["measures"]]
    words = [m["verdict"] for m in result["measures"]]
    judged = [word for word in words if word not in ("by construction", "reported")]
    assert lesson["decided"] == [sum(w in ("supported", "opposed") for w in judged), len(judged)]
    shown = learned.page()
    for measure in result["measures"]:
        assert f"<b>{measure['id']}</b>" in shown.html
    assert "0.130 [0.105, 0.155] AUROC" in shown.html
    assert shown.html.count("; asked: above 0.") == 2
    assert "; asked: within 1.000 ± 0.200; 3 seeds, the claim needs 9" in shown.html
    assert not any(character.isdigit() for character in shown.text.splitlines()[0])


def test_nothing_published_is_said_so(workspace):
    for path in (workspace / "reports" / "results").glob("*/*.json"):
        path.unlink()
    assert learned.lessons() == []
    assert learned.page().html == "<p><b>No full run has been kept yet.</b></p>"


def test_a_claim_that_goes_on_from_another_is_said_whole():
    def row(id, says):
        return evidence.Row(
            id, "02", "02_unike", says, where="", metric="", unit="", paper=None, direction="greater", threshold=0.0,
            tolerance=None,
        )  # fmt: skip

    rows = [row("02.C4", "It generalises better."), row("02.C4b", "And keeps more."), row("02.C5", "And so on.")]
    told = [learned.whole(one, rows) for one in rows]
    assert told == ["It generalises better.", "It generalises better. And keeps more.", "And so on."]
