"""The text workloads on small files made here, and on the published plays where they are."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import numpy.testing as npt
import pytest
import torch
from torch.nn import functional

from motley.data import plays, tokens
from motley.data.labelled import read_labelled
from motley.errors import DataError, WorkloadError
from motley.models.bag import EmbeddingBag
from motley.models.units import variant_table
from motley.workload import DataSpec, LocalData, Workload
from motley.workloads.text import LabelledText, NextCharacter, RoleChoice

PLAY = """HAMLET:
To be, or
not.

Second Gravedigger:
Aye.


HAMLET:
é!

OPHELIA:
My lord, my lord
"""
A = tokens.ALPHABET.index


@pytest.fixture
def play(tmp_path: Path) -> Path:
    (tmp_path / "input.txt").write_text(PLAY, encoding="utf-8")
    return tmp_path


def load(workload: Workload, spec: str) -> LocalData:
    return workload.load(DataSpec.parse(spec))


# --- plays ---------------------------------------------------------------------------------------


def test_roles_in_order_of_what_they_say(play: Path) -> None:
    roles = plays.read_roles(play)
    assert list(roles.items()) == [
        ("HAMLET", ["To be, or\nnot.", "é!"]),
        ("OPHELIA", ["My lord, my lord"]),
        ("Second Gravedigger", ["Aye."]),
    ]
    assert plays.read_roles(play / "input.txt") == roles


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"A:\nb\n\nNobody says\nthis", "paragraph 2 of .* starts with 'Nobody says'; expected"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"", "paragraph 1 of .* starts with ''"),
    ],
)
def test_what_is_no_play_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "input.txt").write_bytes(text)
    with pytest.raises(DataError, match=message):
        plays.read_roles(tmp_path)


@pytest.mark.parametrize("count", [-1, 0, 1, 3, 4, 5, 9])
def test_a_cut_loses_nothing(count: int) -> None:
    first, rest = plays.cut(["abc", "de"], count)
    assert "".join(first + rest) == "abcde"
    assert len("".join(first)) == min(5, max(0, count))
    assert all(first + rest)


# --- tokens --------------------------------------------------------------------------------------


def test_windows_by_hand() -> None:
    before, symbols = tokens.windows(["ab\n", "~é"], 2)
    assert symbols.tolist() == [A("a"), A("b"), A("\n"), A("~"), 96]
    start = -1
    assert before.tolist() == [
        [start, start],
        [start, A("a")],
        [A("a"), A("b")],
        [start, start],
        [start, A("~")],
    ]
    assert tokens.SYMBOLS == 97
    empty, none = tokens.windows([], 3)
    assert (empty.shape, none.shape) == ((0, 3), (0,))


def test_tokens_of_places_and_ngrams_by_hand() -> None:
    before = np.array([[-1, 4, 7], [-1, -1, 2], [0, 0, 96]])
    places = tokens.context_tokens(before, 1, 10)
    assert places.tolist() == [[0, 1 + 97 + 4, 1 + 194 + 7], [0, 0, 1 + 194 + 2], [1, 98, 291]]
    both = tokens.context_tokens(before, 2, 10)
    npt.assert_array_equal(both[:, :3], places)

    def pair(first: int, second: int) -> int:
        number = 2
        for value in (first, second):
            number = (number * 1_000_003 + value) % (2**31 - 1)
        return 1 + 3 * 97 + number % 10

    assert both[:, 3].tolist() == [pair(4, 7), 0, pair(0, 96)]
    assert tokens.context_size(3, 2, 10) == 1 + 3 * 97 + 10
    assert tokens.context_size(3, 1, 10) == 1 + 3 * 97


def test_tokens_stay_within_the_vocabulary() -> None:
    before = np.random.default_rng(0).integers(-1, 97, (500, 6))
    found = tokens.context_tokens(before, 5, 33)
    assert found.shape == (500, 10)
    assert found.min() == 0
    assert found.max() < tokens.context_size(6, 5, 33)
    words = tokens.word_tokens(["a b c d e"], 5, 2, 4)
    assert set(words[0].tolist()) <= {0, 1, 2, 3}


def test_words_by_hand() -> None:
    def word(text: str) -> int:
        return 1 + zlib.crc32(text.encode()) % 999

    found = tokens.word_tokens(["It's HOT, é", "", "one two three"], 4, 2, 1000)
    singles = [word(w) for w in ("it", "'", "s", "hot")]
    pairs = [word(w) for w in ("it '", "' s", "s hot")]
    assert found[0].tolist() == [*singles, *pairs, 0]
    assert not found[1].any()
    assert found[2].tolist() == [
        *(word(w) for w in ("one", "two", "three")),
        0,
        word("one two"),
        word("two three"),
        0,
        0,
    ]


# --- the model -----------------------------------------------------------------------------------


def test_the_bag_is_torchs_mean_bag_without_padding() -> None:
    module = EmbeddingBag(vocabulary=11, width=4, classes=3)
    bag = [[1, 10, 3, 0], [0, 0, 5, 0], [2, 2, 2, 7], [0, 0, 0, 0]]
    logits = module(torch.tensor(bag))
    for row, found in zip(bag, logits, strict=True):
        kept = [token for token in row if token]
        mean = torch.zeros(4)
        if kept:
            mean = functional.embedding_bag(
                torch.tensor([kept]), module.embedding.weight, mode="mean"
            )[0]
        torch.testing.assert_close(found, module.fc(mean))
    logits.sum().backward()
    assert module.embedding.weight.grad is not None
    assert not module.embedding.weight.grad[0].any()


def test_only_the_embedding_is_quantized() -> None:
    for name, variant in NextCharacter().variants().items():
        table = variant_table(variant)
        assert [row.name for row in table if row.quantized] == ["embedding.weight"], name
        assert table.units == ("embedding", "fc")
        assert table["embedding.weight"].shape == (1 + 8 * 97 + 8192, int(name[3:]))
        assert table["fc.bias"].shape == (97,)


def test_clients_can_be_batched() -> None:
    clients = [EmbeddingBag(vocabulary=9, width=4, classes=3) for _ in range(2)]
    stacked = {
        name: torch.stack([client.get_parameter(name).detach() for client in clients])
        for name, _ in clients[0].named_parameters()
    }
    x = torch.randint(0, 9, (2, 5, 6))
    together = torch.func.vmap(
        lambda parameters, x: torch.func.functional_call(clients[0], parameters, (x,))
    )(stacked, x)
    apart = torch.stack([client(bag) for client, bag in zip(clients, x, strict=True)])
    torch.testing.assert_close(together, apart.detach())


# --- next character ------------------------------------------------------------------------------


def test_one_role(play: Path) -> None:
    data = load(NextCharacter(context=3, ngrams=2, buckets=5), f"{play}?role=HAMLET&train=12")
    text = "To be, or\nnot.é!"
    symbols = [tokens.ALPHABET.index(c) if c in tokens.ALPHABET else 96 for c in text]
    assert data.train.targets.tolist() == symbols[:12]
    assert data.test.targets.tolist() == symbols[12:]
    assert (data.train.inputs.shape, data.train.inputs.dtype) == ((12, 4), np.int64)
    # A cut starts afresh, and so does the second speech.
    assert not data.test.inputs[0].any()
    assert not data.test.inputs[len("t.")].any()
    assert data.train.inputs[2].tolist()[:3] == [0, 1 + 97 + A("T"), 1 + 194 + A("o")]


def test_validation_characters_are_the_last_of_those_that_train(play: Path) -> None:
    workload = NextCharacter(context=2, ngrams=1)
    whole = load(workload, f"{play}?clients=2&client=0&least=4&train=0.5")
    cut = load(workload, f"{play}?clients=2&client=0&least=4&train=0.5&validate=0.25")
    npt.assert_array_equal(cut.train.targets, whole.train.targets[:6])
    npt.assert_array_equal(cut.test.targets, whole.train.targets[6:])
    pooled = workload.held_out(DataSpec.parse(f"{play}?clients=2&least=4&train=0.5&validate=0.25"))
    assert len(pooled) == 4
    with pytest.raises(DataError, match="validate=all; expected a fraction above 0 and below 1"):
        load(workload, f"{play}?validate=all")


def test_roles_as_clients(play: Path) -> None:
    workload = NextCharacter(context=2, ngrams=1)
    sizes = []
    for client in range(3):
        data = load(workload, f"{play}?clients=3&client={client}&least=4&train=0.5")
        sizes.append((len(data.train), len(data.test)))
    assert sizes == [(8, 8), (8, 8), (2, 2)]
    assert len(load(workload, f"{play}?train=0.5").train) == 18
    assert len(workload.held_out(DataSpec.parse(f"{play}?clients=2&least=16&train=0.5"))) == 16
    assert len(workload.held_out(DataSpec.parse(f"{play}?role=OPHELIA&train=0.75"))) == 4


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (
            "role=YORICK",
            "no role is called 'YORICK'; there are 3, those that speak most are HAMLET",
        ),
        ("role=HAMLET&clients=2", "role and clients exclude each other"),
        ("client=2", "client needs clients"),
        ("clients=2", "client is missing; expected 0 to 1"),
        ("clients=2&client=2", "client=2; expected 0 to 1"),
        ("clients=3&client=0", "clients=3, but 0 roles have 4000 characters"),
        ("clients=3&client=0&least=16", "but 2 roles have 16 characters; ask for at most 2"),
        ("role=HAMLET&train=16", "train=16 leaves none of the 16 characters of HAMLET"),
        ("role=HAMLET&train=2-5", "train=2-5; expected one number"),
        ("roles=2", "'roles' is not known for this workload; there are role, clients"),
    ],
)
def test_bad_options_of_roles(play: Path, query: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(NextCharacter(), f"{play}?{query}")


def test_bad_arguments() -> None:
    with pytest.raises(WorkloadError, match=r"context=3, ngrams=4.*1 <= ngrams <= context"):
        NextCharacter(context=3, ngrams=4)
    with pytest.raises(WorkloadError, match="two or more different ones"):
        LabelledText(labels="a,a")
    with pytest.raises(WorkloadError, match="vocabulary=1,"):
        LabelledText(labels="a,b", vocabulary=1)


# --- labelled texts ------------------------------------------------------------------------------


def test_csv_without_names_of_columns(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text('"2","Stocks, up","by ""much"""\n\n"1","Rain","and\nwind"\n')
    texts, targets = read_labelled(path, ["1", "2"])
    assert texts == ['Stocks, up by "much"', "Rain and\nwind"]
    assert targets.tolist() == [1, 0]


def test_tsv_with_names_of_columns(tmp_path: Path) -> None:
    path = tmp_path / "sms.tsv"
    path.write_text('id\ttext\tkind\n7\tWin "now\tspam\n8\tHello\tham\n')
    texts, targets = read_labelled(path, ["ham", "spam"], ("kind", ["text"]))
    assert texts == ['Win "now', "Hello"]
    assert targets.tolist() == [1, 0]


def test_bad_tables(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("label,text\nspam,Win\n")
    with pytest.raises(DataError, match=r"row 1 of .* the label 'label'; .* say which: label="):
        read_labelled(path, ["ham", "spam"])
    with pytest.raises(DataError, match="no column 'words'; its first row names label, text"):
        read_labelled(path, ["ham", "spam"], ("label", ["words"]))
    with pytest.raises(DataError, match=r"row 2 of .* the label 'spam'; expected one of ham, eggs"):
        read_labelled(path, ["ham", "eggs"], ("label", ["text"]))
    path.write_bytes(b"\xff\xfe,x\n")
    with pytest.raises(DataError, match="no table of UTF-8 text"):
        read_labelled(path, ["ham", "spam"])
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_labelled(tmp_path / "nowhere.csv", ["ham", "spam"])


def test_labelled_texts_are_shared_out(tmp_path: Path) -> None:
    path = tmp_path / "news.csv"
    path.write_text("".join(f"{row % 4},word{row} common\n" for row in range(80)))
    workload = LabelledText(labels="0,1,2,3", vocabulary=5000, length=3)
    seen: list[int] = []
    for client in range(4):
        data = load(workload, f"{path}?clients=4&client={client}&classes=2&train=7")
        assert (len(data.train), len(data.test)) == (7, 13)
        assert len(set(data.train.targets.tolist())) == 2
        assert (data.train.inputs.shape, data.train.inputs.dtype) == ((7, 3), np.int64)
        seen += [*data.train.inputs[:, 0].tolist(), *data.test.inputs[:, 0].tolist()]
    expected = [int(tokens.word_tokens([f"word{row}"], 1, 1, 5000)[0, 0]) for row in range(80)]
    assert sorted(seen) == sorted(expected)
    assert len(workload.held_out(DataSpec.parse(f"{path}?clients=4&classes=2&train=7"))) == 52
    held = load(workload, f"{path}?clients=4&client=0&classes=2&train=0.5&validate=0.2")
    assert (len(held.train), len(held.test)) == (8, 2)
    assert variant_table(workload.variants()["bag32"])["fc.weight"].shape == (4, 32)
    with pytest.raises(DataError, match="only given together"):
        load(workload, f"{path}?label=kind")


# --- the published plays -------------------------------------------------------------------------


def test_published_plays() -> None:
    root = os.environ.get("MOTLEY_DATA_DIR")
    if not root or not (Path(root) / "shakespeare").is_dir():
        pytest.skip("MOTLEY_DATA_DIR names no folder with shakespeare in it")
    folder = Path(root) / "shakespeare"
    roles = plays.read_roles(folder)
    assert len(roles) == 309
    assert sum(plays.characters(said) > 4000 for said in roles.values()) == 71
    assert next(iter(roles)) == "GLOUCESTER"
    text = (folder / "input.txt").read_text()
    assert len(text) == 1_115_394
    # What is said, the names, and the line feeds between them are the whole file.
    speeches = [speech for said in roles.values() for speech in said]
    names = sum(len(f"{name}:") * len(said) for name, said in roles.items())
    feeds = sum(map(len, speeches)) + names
    assert 0 < len(text) - feeds <= 3 * len(speeches) + 3
    for client in (0, 70):
        data = load(NextCharacter(), f"{folder}?clients=71&client={client}")
        whole = len(data.train) + len(data.test)
        assert len(data.train) == round(0.8 * whole)
        assert whole > 4000
        assert data.train.targets.max() < tokens.SYMBOLS - 1
    choice = RoleChoice(clients=71)
    train, test = choice.speeches(folder)
    assert plays.characters(train) + plays.characters(test) == sum(
        sorted((plays.characters(said) for said in roles.values()), reverse=True)[:71]
    )
