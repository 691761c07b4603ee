"""How to choose among noisy finalists, and how often a win is claimed where there is none.

``python studies/finals.py``: an analytic model. Candidates' true fitness lies at ``mu`` ± ``tau``
around that of three equal baselines, as near the end of a search; every item adds noise such that
two candidates differ on a fifth of the right-or-wrong items. Choices are compared by the true
fitness, in thousandths, of what they ship; the race itself is ``evomerge.search.race``.
"""

from __future__ import annotations

import argparse

import numpy as np

from evomerge.evaluation.paired import mcnemar
from evomerge.search.race import Race, RoundResult

OWN = np.sqrt(0.2 / 2)  # per item, of one candidate: items' common difficulty cancels in pairs
BASELINES, ROUNDS, CANDIDATES = 3, 3, 100
WAYS = ("search", "race", "shrunk", "pooled", "eliminated")


def choices(rng, tau, mu, items, fresh, finalists):
    """The true fitness of what each way ships, and the race's cost in finalists' whole races."""
    truth = np.concatenate([np.zeros(BASELINES), mu + tau * rng.standard_normal(CANDIDATES)])
    search = truth + OWN / np.sqrt(items) * rng.standard_normal(len(truth))
    searched = search[BASELINES:]
    top = BASELINES + np.argsort(-searched)[:finalists]
    entrants = np.concatenate([top, np.arange(BASELINES)])
    share = fresh // ROUNDS
    noise = OWN / np.sqrt(share) * rng.standard_normal((ROUNDS, len(truth)))
    rounds = truth + noise
    found = {"search": np.argmax(search), "race": entrants[np.argmax(rounds.mean(0)[entrants])]}
    found["shrunk"] = shrunk(search, rounds.mean(0), entrants, items, fresh)
    pool = (items * search + fresh * rounds.mean(0)) / (items + fresh)
    found["pooled"] = entrants[np.argmax(pool[entrants])]
    race, cost = run({str(i): float(search[i]) for i in entrants}, items, share, rounds)
    found["eliminated"] = int(race.leader)
    return [truth[found[way]] for way in WAYS], cost / len(entrants)


def shrunk(search, fresh_scores, entrants, items, fresh):
    """Empirical Bayes: searched scores shrunk to their mean by the noise's share."""
    noise = OWN**2 / items
    searched = search[BASELINES:]
    spread = max(searched.var(ddof=1) - noise, 1e-12)
    prior = np.where(entrants >= BASELINES, 1 / spread, 0.0)
    weight, more = 1 / noise, fresh / OWN**2
    total = prior * searched.mean() + weight * search[entrants] + more * fresh_scores[entrants]
    return entrants[np.argmax(total / (prior + weight + more))]


def run(searched, items, share, rounds):
    """The race as it is run, with elimination."""
    race, cost = Race(searched, items), 0.0
    error = float(OWN * np.sqrt(2 / share))
    for scores in rounds:
        names = race.remaining
        errors = {a: dict.fromkeys(names[i + 1 :], error) for i, a in enumerate(names)}
        result = RoundResult(share, {name: float(scores[int(name)]) for name in names}, errors)
        race = Race(searched, items, (*race.rounds, result))
        cost += len(names) / len(rounds)
    return race, cost


def false_wins(rng, baselines, candidates, finalists, items, held_out, repetitions, effect=0.0):
    """Shares of verdicts that are a win, against one baseline and against up to three, or a loss.

    Right-or-wrong items with a difficulty of their own; the shipped candidate is better than the
    baselines by ``effect`` in the probability of each item. Intervals are normal, 95 %.
    """
    one = strict = all_ = losses = exact = 0
    for _ in range(repetitions):
        search = rng.standard_normal(baselines + candidates) * OWN / np.sqrt(items)
        # What is shipped is the search's luckiest; luck on search items is none on held-out ones.
        ranked = np.argsort(-search[:baselines])[:3]
        p = np.clip(rng.beta(1.5, 1.0, held_out), 0.02, 0.95)
        shipped = rng.random(held_out) < np.clip(p + effect, 0, 1)
        others = [rng.random(held_out) < p for _ in ranked]
        gains = [shipped.astype(float) - other for other in others]
        low = [g.mean() - 1.96 * g.std() / np.sqrt(held_out) for g in gains]
        one += low[0] > 0
        strict += min(low) > 0
        looser = [g.mean() - 1.645 * g.std() / np.sqrt(held_out) for g in gains[1:]]
        all_ += low[0] > 0 and min(looser, default=1.0) > 0
        losses += gains[0].mean() + 1.96 * gains[0].std() / np.sqrt(held_out) < 0
        exact += (
            gains[0].mean() > 0
            and mcnemar(int((gains[0] > 0).sum()), int((gains[0] < 0).sum())) <= 0.05
        )
    return [100 * count / repetitions for count in (one, strict, all_, losses, exact)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=1000)
    repetitions = parser.parse_args().repetitions
    print(
        f"{'items':>6}{'fresh':>6}{'tau':>7}{'mu':>7}{'finalists':>10}",
        *(f"{w:>11}" for w in WAYS),
        "  cost",
    )
    for items, fresh in ((100, 99), (400, 198), (400, 399), (400, 1599)):
        for tau, mu in ((0.01, 0.0), (0.02, 0.0), (0.01, 0.01), (0.01, -0.02)):
            for finalists in (3, 6, 12):
                rng = np.random.default_rng(0)
                found = [choices(rng, tau, mu, items, fresh, finalists) for _ in range(repetitions)]
                means = 1000 * np.mean([values for values, _ in found], axis=0)
                cost = np.mean([one for _, one in found])
                row = f"{items:>6}{fresh:>6}{tau:>7}{mu:>7}{finalists:>10}"
                print(row, *(f"{mean:>11.1f}" for mean in means), f"{cost:>6.2f}")
    print("\nverdicts in % of cases: a win against the first baseline, each at 95 %,")
    print(
        "the first at 95 % and others at 90 % (as judged), a loss to the first, a win over it by "
        "McNemar's test"
    )
    for baselines in (1, 3, 6):
        for held_out in (50, 200, 1000):
            for effect in (0.0, 0.03, 0.05):
                rng = np.random.default_rng(1)
                found = false_wins(rng, baselines, 60, 6, 400, held_out, 2 * repetitions, effect)
                words = f"{baselines} baselines, {held_out:>4} held-out items, effect {effect:.2f}:"
                print(words, *(f"{share:>6.1f}" for share in found))


if __name__ == "__main__":
    main()
