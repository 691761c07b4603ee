"""``evomerge dashboard``: the optional Optuna dashboard, on this machine only."""

from __future__ import annotations

from importlib.util import find_spec

from evomerge.cli.output import AS_IT_IS, stderr
from evomerge.errors import EvomergeError

HOST = "127.0.0.1"


def run_dashboard(study: str, storage: str | None, port: int) -> None:
    """Serve the dashboard until Ctrl-C."""
    if find_spec("optuna_dashboard") is None:
        raise EvomergeError(
            "the dashboard is not installed; install it with: pip install 'evomerge[dashboard]'"
        )
    import optuna_dashboard

    from evomerge.api import load_study

    report = load_study(study, storage)
    stderr.print(
        f"Study {report.name}: http://{HOST}:{port}/dashboard (Ctrl-C stops it)", **AS_IT_IS
    )
    try:
        optuna_dashboard.run_server(report.url, host=HOST, port=port)
    except OSError as problem:
        raise EvomergeError(f"cannot listen on {HOST}:{port}: {problem.strerror}") from problem
