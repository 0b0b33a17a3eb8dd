"""ProsQA (Hao et al. 2024, arXiv:2412.06769, appendix): which of two concepts is a person, in a graph of "is a".

A directed acyclic graph grows node by node. Nodes 0 and 1 are roots labelled 1 and 2; a new node draws parents among
the nodes of one of the two labels or among all nodes, deeper ones more often, and its label is the bitwise or of
theirs. The question names a leaf that only one of the two roots leads to and one that only the other does; the steps
are a shortest path.

The paper leaves three things open, settled here by the published records, whose averages result (23 nodes, 36 edges,
path length 3.8, 1.6 shortest paths): 28 nodes grow, of which those without an edge are never mentioned; a node without
parents, unlabelled, is drawn as a parent only where all nodes are candidates (else there were six times as many
persons that the question is not about as there are); and it is the deeper of the two sides that is asked about, its
deepest leaf, at least 3 steps away.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from multicoco.errors import UserError
from multicoco.tasks.files import Key, check_sizes, digest, question_key, questions_in, to_json, write_folder


def _concepts(beginnings: str) -> tuple[str, ...]:
    return tuple(f"{beginning}pus" for beginning in beginnings.split())


NAMES = (
    *("Alex", "Bob", "Carol", "Davis", "Eva", "Fae", "Gabriel", "Jack", "Max"),
    *("Oliver", "Polly", "Rex", "Sally", "Sam", "Stella", "Tom", "Wren"),
)
PUBLISHED_CONCEPTS = _concepts(
    "bom boom brim chor dum fel fom ger gor grim gwom hil im jel jom ker lem lor num quim rem rom ror scrom shum ster "
    "stor ter tim tum vum wor wum yer yim yum zhor zum"
)
MORE_CONCEPTS = _concepts(  # for graphs that need more
    "blim crom dram elm flom glor hom jum krim lom mim nor plum prem skel som trom ulm vel whim"
)
MEAN_PARENTS = {"dag": 1.5, "tree": 1.0, "dense": 3.0}  # of a new node; in a tree each has exactly one
EXP_MINUS_ONE_HALF = 0.6065306597126334  # a literal: math.exp may differ in its last bit between platforms
MIN_HOPS = 3  # where the length of the path is left to the graph
MAX_NODES = len(PUBLISHED_CONCEPTS) + len(MORE_CONCEPTS)
MAX_TRIES = 30_000  # graphs for one record: some seconds

_FILES = {"train": "prosqa_train.json", "val": "prosqa_valid.json", "test": "prosqa_test.json"}


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order: the parents of each are before it.

    Attributes:
        parents: of each node, in the order drawn.
        labels: 1: below node 0 alone, 2: below node 1 alone, 3: below both, 0: below neither.
        depths: of each node, the steps of the shortest way to it from a node without parents.
    """

    parents: tuple[tuple[int, ...], ...]
    labels: tuple[int, ...]
    depths: tuple[int, ...]

    @cached_property
    def edges(self) -> list[tuple[int, int]]:
        """(parent, child)"""
        return [(parent, child) for child, parents in enumerate(self.parents) for parent in parents]

    @cached_property
    def mentioned(self) -> list[int]:
        """The nodes that have an edge."""
        return sorted({node for edge in self.edges for node in edge})

    def leaves(self, root: int) -> list[int]:
        """What the root alone leads to, and nothing further on."""
        inner = {parent for parent, _ in self.edges}
        below = self.distances(root)
        return [node for node in below if node not in inner and self.labels[node] == root + 1 and node != root]

    def distances(self, root: int) -> dict[int, int]:
        """Steps on a shortest path from the root, of every node that it leads to."""
        found = {root: 0}
        for node in range(root + 1, len(self.parents)):
            above = [found[parent] for parent in self.parents[node] if parent in found]
            if above:
                found[node] = min(above) + 1
        return found

    def shortest_paths(self, root: int) -> dict[int, int]:
        """How many there are, to every node that the root leads to."""
        distances = self.distances(root)
        ways = {root: 1}
        for node in range(root + 1, len(self.parents)):
            if node in distances:
                ways[node] = sum(ways[parent] for parent in self._before(node, distances))
        return ways

    def draw_path(self, rng: random.Random, root: int, leaf: int) -> list[int]:
        """A shortest path, all of them equally likely."""
        distances, ways = self.distances(root), self.shortest_paths(root)
        path = [leaf]
        while path[-1] != root:
            before = self._before(path[-1], distances)
            path += rng.choices(before, [ways[parent] for parent in before])
        return path[::-1]

    def _before(self, node: int, distances: dict[int, int]) -> list[int]:
        """The parents through which shortest paths lead."""
        return [parent for parent in self.parents[node] if distances.get(parent) == distances[node] - 1]


def grow(rng: random.Random, nodes: int, shape: str = "dag") -> Graph:
    """A graph of so many nodes; see the top of this file."""
    parents: list[tuple[int, ...]] = [(), ()]
    labels, depths = [1, 2], [0, 0]
    for node in range(2, nodes):
        wanted = 1 if shape == "tree" else _poisson(rng, MEAN_PARENTS[shape])
        place = rng.random()
        label = 1 if place < 0.35 else 2 if place < 0.7 else None
        candidates = [other for other in range(node) if label in (None, labels[other])]
        drawn: list[int] = []
        while len(drawn) < wanted and candidates:
            weights = [1.5 * depths[other] + 1 for other in candidates]
            drawn += rng.choices(candidates, weights)
            candidates.remove(drawn[-1])
        parents.append(tuple(drawn))
        labels.append(0)
        for parent in drawn:
            labels[node] |= labels[parent]
        depths.append(min((depths[parent] + 1 for parent in drawn), default=0))
    return Graph(tuple(parents), tuple(labels), tuple(depths))


def _poisson(rng: random.Random, mean: float) -> int:
    """By Knuth's products of uniform numbers; the mean is a multiple of 0.5."""
    limit = 1.0
    for _ in range(round(2 * mean)):
        limit *= EXP_MINUS_ONE_HALF
    count, product = 0, rng.random()
    while product > limit:
        count, product = count + 1, product * rng.random()
    return count


@dataclass(frozen=True)
class Kind:
    """Which graphs, and what is asked about them.

    Attributes:
        nodes: of a graph, those included that end up without an edge and are not mentioned: 5 of 28.
        hops: lengths of the path, taken in turn; None leaves it to the graph, as published (3 to 6, rarely more).
        shape: "dag" as published, "tree" (one way to everything), "dense" (twice the parents).
        same_depth: only questions whose options are as deep (`Graph.depths`), so that depth tells nothing.
        names: of concepts to draw from, and of persons: fewer are sooner learned. None: as published, and more
            concepts for larger graphs.
    """

    nodes: int = 28
    hops: tuple[int, ...] | None = None
    shape: str = "dag"
    same_depth: bool = False
    names: int | None = None


def ask(
    rng: random.Random, graph: Graph, hops: int | None = None, same_depth: bool = False
) -> tuple[list[int], int] | None:
    """A shortest path from node 0 or 1 to a leaf of its own, and a leaf of the other's; None if there is none.

    Args:
        hops: length of the path; None: that to the deepest leaf, at least MIN_HOPS.
        same_depth: as in `Kind`.
    """
    leaves = [graph.leaves(root) for root in (0, 1)]
    if not all(leaves):
        return None
    distances = [graph.distances(root) for root in (0, 1)]
    deepest = [max(distances[root][leaf] for leaf in leaves[root]) for root in (0, 1)]
    for root in sorted((0, 1), key=lambda root: -deepest[root]):
        length = max(deepest[root], MIN_HOPS) if hops is None else hops
        others = {
            leaf: [other for other in leaves[1 - root] if not same_depth or graph.depths[other] == graph.depths[leaf]]
            for leaf in leaves[root]
            if distances[root][leaf] == length
        }
        if targets := [leaf for leaf in others if others[leaf]]:
            leaf = rng.choice(targets)
            return graph.draw_path(rng, root, leaf), rng.choice(others[leaf])
    return None


def make_record(
    rng: random.Random, graph: Graph, path: list[int], other: int, names: int | None
) -> dict[str, Any] | None:
    """The graph and the question about it in words, as published; None if there are not enough names (`Kind`)."""
    roots = [node for node in graph.mentioned if not graph.parents[node]]
    concepts = [node for node in graph.mentioned if graph.parents[node]]
    persons = NAMES[:names]
    if len(roots) > len(persons):
        return None
    words = PUBLISHED_CONCEPTS if len(concepts) <= len(PUBLISHED_CONCEPTS) else PUBLISHED_CONCEPTS + MORE_CONCEPTS
    words = words[:names]
    called = dict(zip(roots, rng.sample(persons, len(roots)), strict=True))
    called |= zip(concepts, rng.sample(words, len(concepts)), strict=True)

    def fact(parent: int, child: int) -> str:
        every = "Every " if graph.parents[parent] else ""
        return f"{every}{called[parent]} is a {called[child]}."

    facts = rng.sample([fact(*edge) for edge in graph.edges], len(graph.edges))
    name, options = called[path[0]], rng.sample([called[path[-1]], called[other]], 2)
    return {
        "question": f"{' '.join(facts)} Is {name} a {options[0]} or {options[1]}?",
        "steps": [fact(*edge) for edge in pairwise(path)],
        "answer": f"{name} is a {called[path[-1]]}.",
    }


def write_prosqa(
    out_dir: Path,
    n: int = 17886,
    val: int = 300,
    test: int = 500,
    seed: int = 0,
    kind: Kind = Kind(),
    apart_from: Sequence[Path] = (),
) -> dict[str, int]:
    """Writes `prosqa_{train,valid,test}.json` in the published form (`question`, `steps`, `answer`).

    The same arguments give the same bytes, on any platform. No question occurs twice, within a split or across
    splits; questions are the same if they have the same facts and ask for the same.

    Args:
        out_dir: as in `write_folder`.
        n, val, test: records of the three files, as many as published by default; 0 leaves a file empty.
        seed: of everything drawn.
        kind: of the graphs and questions.
        apart_from: files of records, or folders of them, none of whose questions is to occur.

    Returns:
        The number of records per split.

    Raises:
        UserError: bad arguments, graphs of this size hold no such questions or not enough of them, or `out_dir`
            holds something else or cannot be written.
    """
    sizes = {"train": n, "val": val, "test": test}
    check_sizes("prosqa", sizes)
    hops = kind.hops
    if kind.shape not in MEAN_PARENTS:
        raise UserError(f"prosqa: shape must be one of {', '.join(MEAN_PARENTS)}, not {kind.shape!r}")
    if hops is not None and (not hops or min(hops) < 1):
        raise UserError(f"prosqa: hops must be at least 1, not {list(hops)}")
    least = max(hops or [MIN_HOPS]) + 3
    if not least <= kind.nodes <= MAX_NODES:
        raise UserError(f"prosqa: nodes must be {least} (for paths of {least - 3}) to {MAX_NODES}, not {kind.nodes}")
    if kind.names is not None and not kind.nodes - 2 <= kind.names <= MAX_NODES:  # two nodes at least are persons
        raise UserError(
            f"prosqa: names must be {kind.nodes - 2} (for {kind.nodes} nodes) to {MAX_NODES}, not {kind.names}"
        )
    avoided = questions_in(apart_from)
    given = {"seed": seed, "nodes": kind.nodes, "hops": hops and list(hops), "shape": kind.shape}
    given |= {"same_depth": True} if kind.same_depth else {}
    given |= {"names": kind.names} if kind.names is not None else {}

    def write(folder: Path) -> None:
        seen = set(avoided)
        for split, size in sizes.items():
            # a record's draws are its own: a larger split begins with the records of a smaller one
            wanted = (hops[i % len(hops)] if hops else None for i in range(size))
            records = [
                _draw_record(random.Random(f"{seed}/{split}/{i}"), kind, length, seen)
                for i, length in enumerate(wanted)
            ]
            (folder / _FILES[split]).write_text(to_json(records), encoding="utf-8")

    arguments = {"task": "prosqa", **sizes, **given, "apart_from": digest(avoided)}
    write_folder(out_dir, arguments, _FILES.values(), write)
    return sizes


def draw_records(rng: random.Random, kind: Kind, hops: int | None) -> Iterator[dict[str, Any] | None]:
    """Records without end with paths of this length, None for a graph that holds no such question."""
    while True:
        graph = grow(rng, kind.nodes, kind.shape)
        question = ask(rng, graph, hops, kind.same_depth)
        yield question and make_record(rng, graph, *question, kind.names)


def _draw_record(rng: random.Random, kind: Kind, hops: int | None, seen: set[Key]) -> dict[str, Any]:
    """A record with a question that is not among those seen, which it joins."""
    found = False
    for _, record in zip(range(MAX_TRIES), draw_records(rng, kind, hops), strict=False):
        if record is not None:
            found = True
            key = question_key(record["question"])
            if key not in seen:
                seen.add(key)
                return record
    length = f"paths of {hops}" if hops else f"paths of at least {MIN_HOPS}"
    length += " and options of one depth" if kind.same_depth else ""
    problem = "no further questions" if found else "no questions"
    raise UserError(
        f"prosqa: {problem} with {length} in {MAX_TRIES:,} graphs of {kind.nodes} nodes, shape {kind.shape}: raise "
        "nodes, or ask for shorter paths or fewer records"
    )
