"""Orders: contents, ids, aliases, messages."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from raycl.errors import SpecError
from raycl.tasks.catalogue import open_catalogue
from raycl.tasks.orders import order_title, resolve_order


def test_the_orders_hold_known_tasks_once() -> None:
    sizes = {"std-1": 4, "std-2": 4, "std-3": 4, "long-4": 15, "long-5": 15, "long-6": 15}
    sizes |= {"sni-1": 15, "sni-2": 15, "demo": 4}
    assert {order: len(tasks) for order, tasks in open_catalogue().orders.items()} == sizes
    for tasks in open_catalogue().orders.values():
        assert len(set(tasks)) == len(tasks)
        assert set(tasks) <= set(open_catalogue().tasks)


def test_every_long_order_is_a_permutation_of_the_benchmark() -> None:
    for order in ("long-4", "long-5", "long-6"):
        assert set(open_catalogue().orders[order]) == set(open_catalogue().stream("long"))
    for order in ("sni-1", "sni-2"):
        assert set(open_catalogue().orders[order]) == set(open_catalogue().stream("superni"))


def test_am_lora_table_4() -> None:
    assert resolve_order("1") == ("std-1", ("dbpedia", "amazon", "yahoo", "agnews"))
    assert resolve_order("2") == ("std-2", ("dbpedia", "amazon", "agnews", "yahoo"))
    assert resolve_order("3") == ("std-3", ("yahoo", "amazon", "agnews", "dbpedia"))
    long_4 = "mnli cb wic copa qqp boolq rte imdb yelp amazon sst2 dbpedia agnews multirc yahoo"
    long_5 = "multirc boolq wic mnli cb copa qqp rte imdb sst2 dbpedia agnews yelp amazon yahoo"
    long_6 = "yelp amazon mnli cb copa qqp rte imdb sst2 dbpedia agnews yahoo multirc boolq wic"
    assert resolve_order("4") == ("long-4", tuple(long_4.split()))
    assert resolve_order("5") == ("long-5", tuple(long_5.split()))
    assert resolve_order(" 6 ") == ("long-6", tuple(long_6.split()))


def test_published_scripts_agree(benchmark_data: Path) -> None:
    published = json.loads((benchmark_data / "task_orders.json").read_text())
    same = {
        "std-1": "olora_order_1",
        "std-2": "olora_order_2",
        "std-3": "olora_order_3",
        "long-6": "gainlora_long_order3",
        "long-4": "gainlora_long_order4",
        "sni-1": "gainlora_superni_order1",
        "sni-2": "gainlora_superni_order2",
    }
    for order, name in same.items():
        assert list(open_catalogue().orders[order]) == published[name]


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("boolqa", "boolq"),
        ("BoolQA", "boolq"),
        ("SST-2", "sst2"),
        ("QQP", "qqp"),
        ("MultiRC", "multirc"),
        ("IMDB", "imdb"),
        ("ag_news", "agnews"),
        ("1572", "task1572_samsum_summary"),
        ("task073", "task073_commonsenseqa_answer_generation"),
        ("002", "task002_quoref_answer_generation"),
        ("2", "task002_quoref_answer_generation"),
        ("task363_sst2_polarity_classification", "task363_sst2_polarity_classification"),
        ("../yelp/../../etc", None),
        ("", None),
        ("99999", None),
    ],
)
def test_aliases(alias: str, name: str | None) -> None:
    assert open_catalogue().canonical(alias) == name


def test_a_list_gets_a_custom_id_with_canonical_names_that_resolves_again() -> None:
    wanted = ("custom:sst2,boolq,task1572_samsum_summary", ("sst2", "boolq", "task1572_samsum_summary"))
    assert resolve_order("SST-2, boolqa,1572") == wanted
    assert resolve_order(wanted[0]) == wanted
    assert resolve_order("yelp") == ("custom:yelp", ("yelp",))


@pytest.mark.parametrize("text", ["ylp,amazon", "std-9", "", ",", "7", "yelp,", "../../etc/passwd", "\x00"])
def test_an_unknown_order_is_explained(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        resolve_order(text)
    message = str(caught.value)
    assert repr(text) in message
    assert "allowed:" in message
    assert "std-1" in message
    assert "next step:" in message


def test_the_nearest_name_is_suggested() -> None:
    with pytest.raises(SpecError, match="did you mean 'yelp'"):
        resolve_order("ylp,amazon")
    with pytest.raises(SpecError, match="did you mean 'long-4'"):
        resolve_order("long-44")


def test_an_order_of_ones_own_is_titled_by_its_tasks() -> None:
    """With spaces, where a heading may break; many are shortened."""
    assert order_title("std-1") == "std-1"
    assert order_title("custom:yelp,amazon") == "yelp, amazon"
    assert order_title("custom:a,b,c,d,e") == "a, b, ..., e (5 tasks)"


def test_all_superni_tasks_are_named_by_number() -> None:
    """An unknown task's message says how many there are, and each number it lists is one of them."""
    with pytest.raises(SpecError) as caught:
        resolve_order("task123_something")
    listed = re.search(r"one of the 15 SuperNI tasks by name or number \((.*); docs/", str(caught.value))
    assert listed is not None
    assert {open_catalogue().canonical(number) for number in listed[1].split(", ")} == set(
        open_catalogue().stream("superni")
    )
