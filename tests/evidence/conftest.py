import pytest
from quick_results import results_of

from repertory.evidence.report import write_report


@pytest.fixture(scope="session")
def small_results(tmp_path_factory):
    return results_of(("EXPERIMENT", "FLAT", "HARMFUL"), "small", tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def smoke_results(tmp_path_factory):
    return results_of(("EXPERIMENT", "FLAT", "FAILING"), "smoke", tmp_path_factory.mktemp("smoke"))


@pytest.fixture(scope="session")
def report_pages(tmp_path_factory, small_results, smoke_results):
    """Reports on disk, by scale."""
    folder = tmp_path_factory.mktemp("reports")
    for results in (small_results, smoke_results):
        write_report(results, folder / f"{results['scale']}.html")
    return {scale: folder / f"{scale}.html" for scale in ("small", "smoke")}
