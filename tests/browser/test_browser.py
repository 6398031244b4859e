"""What a person sees: a real study in a real `mlflow ui` and its report, in a real browser.

Screenshots are left in test-output/, for a person to look at.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
from conftest import STUDY, STUDY_FLAGS, ask, serving

pytestmark = pytest.mark.slow
webdriver = pytest.importorskip("selenium.webdriver")
By, Wait = (
    pytest.importorskip("selenium.webdriver.common.by").By,
    pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait,
)

NAME, TRIALS, EPOCHS = STUDY, STUDY_FLAGS["num-trials"], STUDY_FLAGS["max-epochs"]
PATIENCE = 90  # s; the machine may be busy
SHOTS = Path(__file__).parents[2] / "test-output"
ACCURACY = "metrics.`val_accuracy`"
RUNS = "#/experiments/{}/runs?workflowType=machine_learning&{}"
ALL_DRAWN = (  # how many plots there are, once all are drawn
    "const plots = [...document.querySelectorAll('.plot')];"
    "const full = plots.filter(p => p.querySelector('.main-svg') && p.clientHeight > 100);"
    "return full.length == plots.length && plots.length"
)
SEEN = (  # the same of a page that is scrolled to each
    "const next = document.querySelector('.plot:not(.js-plotly-plot)');"
    "if (next) { next.scrollIntoView(); return 0; }"
) + ALL_DRAWN
EXPANDERS = "[data-component-id$='runnamecellrenderer.tsx_46']"


class Ui(NamedTuple):
    folder: Path
    url: str
    experiment: str
    runs: list[dict[str, Any]]  # as MLflow's REST interface tells them

    def of_kind(self, kind: str) -> list[str]:
        return [name for name, tags in map(name_and_tags, self.runs) if tags["kind"] == kind]


def name_and_tags(run: dict[str, Any]) -> tuple[str, dict[str, str]]:
    return run["info"]["run_name"], {tag["key"]: tag["value"] for tag in run["data"]["tags"]}


@pytest.fixture(scope="module")
def ui(study: Path) -> Iterator[Ui]:
    """`mlflow ui` as the closing message names it, in the folder where the search ran."""
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with serving([sys.executable, "-m", "mlflow", "ui"], "/health", study, **quiet) as url:
        api = f"{url}/api/2.0/mlflow"
        found = ask(f"{api}/experiments/get-by-name?experiment_name=vgg-search")["experiment"]
        runs = ask(f"{api}/runs/search", experiment_ids=[found["experiment_id"]])["runs"]
        yield Ui(study, url, found["experiment_id"], runs)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("no chromium and chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


def show(browser: Any, url: str, width: int = 1500, height: int = 900) -> None:
    """Open a page in a window whose inside has this size, px. The hash alone reloads nothing."""
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get("about:blank")
    browser.get(url)


def shoot(browser: Any, name: str) -> None:
    SHOTS.mkdir(exist_ok=True)
    browser.save_screenshot(str(SHOTS / f"{name}.png"))


def wait_for(browser: Any, script: str) -> Any:
    """What the script returns, once that is true."""
    return Wait(browser, PATIENCE).until(lambda b: b.execute_script(script), script)


def wait_for_text(browser: Any, *texts: str) -> None:
    Wait(browser, PATIENCE).until(
        lambda b: all(text in b.find_element(By.TAG_NAME, "body").text for text in texts), texts
    )


def close_assistant(browser: Any, ui: Ui) -> None:
    """MLflow's chat panel opens by itself on a first visit and takes a third of the page."""
    show(browser, ui.url)
    wait_for(browser, "localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false'); return 1")
    seen = "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1"
    browser.execute_script(f"localStorage.setItem('{seen}', 'true')")


def test_runs_table_nests_trials_under_their_study(browser: Any, ui: Ui) -> None:
    close_assistant(browser, ui)
    show(browser, f"{ui.url}/{RUNS.format(ui.experiment, '')}")
    wait_for_text(browser, NAME, "Views")
    shoot(browser, "mlflow_runs_at_first")
    # The view that the search has left, as "Views" opens it
    show(browser, f"{ui.url}/{RUNS.format(ui.experiment, 'viewStateShareKey=trials')}")
    wait_for_text(browser, NAME, "val_accuracy")
    trials = ui.of_kind("trial")
    assert len(trials) == TRIALS
    body = browser.find_element(By.TAG_NAME, "body").text
    assert not any(name in body.splitlines() for name in trials)  # folded under the parent
    expander = wait_for(browser, f'return document.querySelector("{EXPANDERS}")')
    browser.execute_script("arguments[0].click()", expander)
    wait_for_text(browser, *trials, "completed")
    shoot(browser, "mlflow_runs")
    shown = browser.execute_script(
        "return [...document.querySelectorAll('[role=gridcell]')]"
        ".filter(cell => cell.getAttribute('col-id').endsWith('val_accuracy`')"
        " && !cell.getAttribute('col-id').includes('best')).map(cell => cell.innerText)"
    )
    values = [float(text.rstrip("…")) for text in shown if text[:2] in ("0.", "1")]
    accuracies = [
        metric["value"]
        for run in ui.runs
        for metric in run["data"]["metrics"]
        if metric["key"] == "val_accuracy"
    ]
    for accuracy in accuracies:
        assert any(abs(value - accuracy) < 1e-3 for value in values), (accuracy, shown)


def test_three_trials_are_compared_by_their_curves(browser: Any, ui: Ui) -> None:
    close_assistant(browser, ui)
    chosen = ui.of_kind("trial")[:3]
    ids = (run["info"]["run_id"] for run in ui.runs if name_and_tags(run)[0] in chosen)
    listed = ", ".join(f"'{run_id}'" for run_id in ids)
    query = {
        "compareRunsMode": "CHART",
        "searchFilter": f"attributes.run_id IN ({listed})",
        "orderByKey": ACCURACY,
    }
    show(browser, f"{ui.url}/{RUNS.format(ui.experiment, urlencode(query))}")
    search = wait_for(
        browser, "return document.querySelector(\"input[placeholder='Search metric charts']\")"
    )
    search.send_keys("^val_accuracy$")
    cards = "[data-testid=experiment-view-compare-runs-card]"
    # One card, and in its plot a line a trial (drawn twice: its points too) with a point an epoch.
    lines = wait_for(
        browser,
        f"const cards = document.querySelectorAll('{cards}');"
        "if (cards.length != 1) return null;"
        "const plot = cards[0].querySelector('.js-plotly-plot');"
        "const lines = plot && plot.data ? plot.data.filter(line => line.y) : [];"
        "const drawn = Object.fromEntries(lines.map(line => [line.name, line.y.length]));"
        f"return Object.keys(drawn).length >= {len(chosen)} && drawn",
    )
    shoot(browser, "mlflow_chart")
    assert lines == dict.fromkeys(chosen, EPOCHS)


def test_model_page_shows_the_champion(browser: Any, ui: Ui) -> None:
    close_assistant(browser, ui)
    show(browser, f"{ui.url}/#/models/vgg-search?workflowType=machine_learning")
    wait_for_text(browser, "Version 1", "@ champion", "test_accuracy", NAME)
    shoot(browser, "mlflow_model")


def test_page_of_a_trial_leads_to_its_study(browser: Any, ui: Ui) -> None:
    close_assistant(browser, ui)
    run = next(run for run in ui.runs if name_and_tags(run)[0] == ui.of_kind("trial")[0])
    show(browser, f"{ui.url}/#/experiments/{ui.experiment}/runs/{run['info']['run_id']}")
    wait_for_text(browser, "Parent run", NAME, "val_accuracy", "weight_decay", "trial_number")
    shoot(browser, "mlflow_trial")


def open_artifact(browser: Any, ui: Ui, path: str) -> None:
    """The page of the study's run, at one of its artifacts, and into the frame that shows it."""
    run = next(run for run in ui.runs if name_and_tags(run)[1]["kind"] == "study")
    place = f"{ui.url}/#/experiments/{ui.experiment}/runs/{run['info']['run_id']}/artifacts"
    show(browser, f"{place}/{path}")
    frame = wait_for(browser, "return document.querySelector('iframe')")
    browser.switch_to.frame(frame)
    wait_for(browser, SEEN)
    browser.switch_to.default_content()


@pytest.mark.parametrize("path", ["report.html", "plots/search.html"])
def test_plots_are_drawn_among_the_artifacts_of_the_study(browser: Any, ui: Ui, path: str) -> None:
    close_assistant(browser, ui)
    open_artifact(browser, ui, path)
    shoot(browser, f"mlflow_artifact_{Path(path).stem}")


def test_pages_of_plots_need_no_network(browser: Any, study: Path) -> None:
    pages = sorted((study / "runs" / NAME / "plots").glob("*.html"))
    assert [page.stem for page in pages] == ["champion", "search", "space"]
    total = 0
    for page in pages:
        browser.get_log("browser")
        show(browser, page.as_uri(), 390)
        total += wait_for(browser, SEEN)
        assert browser.get_log("browser") == []
        assert "http" not in page.read_text().split("<script>")[0].replace("http-equiv", "")
    assert total >= 9
    shoot(browser, "plot_page")


def test_optuna_dashboard_opens_the_record(browser: Any, study: Path) -> None:
    """As the README says: `optuna-dashboard runs/NAME/study.journal`."""
    program = str(Path(sys.executable).with_name("optuna-dashboard"))
    with serving([program, f"runs/{NAME}/study.journal"], "/api/studies", study) as url:
        (told,) = ask(f"{url}/api/studies")["study_summaries"]
        assert told["study_name"] == NAME
        trials = ask(f"{url}/api/studies/{told['study_id']}?after=0")["trials"]
        assert [trial["state"] for trial in trials].count("Complete") == TRIALS
        show(browser, f"{url}/dashboard/studies/{told['study_id']}/trials")
        wait_for_text(browser, NAME, "Trial 0", "Complete")
        shoot(browser, "optuna_dashboard")


@pytest.mark.parametrize(("device", "width"), [("desktop", 1280), ("phone", 390)])
def test_report_draws_what_is_looked_at(browser: Any, study: Path, device: str, width: int) -> None:
    browser.get_log("browser")  # what other pages said
    show(browser, (study / "runs" / NAME / "report.html").as_uri(), width)
    plots = len(browser.find_elements(By.CLASS_NAME, "plot"))
    assert plots >= 8
    assert len(browser.find_elements(By.CLASS_NAME, "js-plotly-plot")) < plots  # the far ones
    assert wait_for(browser, SEEN) == plots
    browser.execute_script("scroll(0, 0)")
    shoot(browser, f"report_{device}")
    inside, page = browser.execute_script(
        "return [innerWidth, document.documentElement.scrollWidth]"
    )
    assert inside == width
    assert page <= width  # else it scrolls sideways
    assert browser.get_log("browser") == []


def test_a_printed_report_has_all_plots(browser: Any, study: Path) -> None:
    show(browser, (study / "runs" / NAME / "report.html").as_uri())
    browser.execute_cdp_cmd("Page.printToPDF", {})
    assert wait_for(browser, ALL_DRAWN) >= 8
