"""How long a browser needs for the report of a study and for MLflow's table of its runs."""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from virtual_search import NAME

DRAWN = (  # whether the plots are that lie less than a screen away; the others are once they do
    "const near = [...document.querySelectorAll('.plot')].filter("
    "plot => plot.getBoundingClientRect().top < 2 * innerHeight);"
    "return document.readyState == 'complete'"
    " && near.every(plot => plot.querySelector('.main-svg'))"
)


def served(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """`mlflow ui` on the folder's database."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = ["-m", "mlflow", "ui", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    with (folder / "ui.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, *command],
            env=os.environ | quiet,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return server, f"http://127.0.0.1:{port}"


def answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=5):
        return True
    return False


def loaded(browser: Any, name: str, url: str, script: str, folder: Path) -> float:
    """Seconds until the script is true of the page; a picture of it is left in the folder."""
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get("about:blank")
    began = time.perf_counter()
    browser.get(url)
    WebDriverWait(browser, 300, 0.1).until(lambda b: b.execute_script(script))
    seconds = time.perf_counter() - began
    browser.save_screenshot(str(folder / f"{name}.png"))
    return round(seconds, 2)


def pages(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds until the report's first screens are drawn, and until MLflow's table of runs is
    there, with the study alone and with its trials unfolded; the second of two loads."""
    from selenium import webdriver

    chrome = webdriver.ChromeOptions()
    chrome.binary_location = shutil.which("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        chrome.add_argument(flag)
    chrome.add_argument("--window-size=1500,1000")
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    report = (options.folder / NAME / "report.html").as_uri()
    server, url = served(options.folder)
    browser = webdriver.Chrome(chrome, service)
    runs = f"{url}/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=trials"
    table = f"return document.body.innerText.includes('{NAME}')"
    table += " && document.querySelectorAll('[role=gridcell]').length > 0"
    try:
        while not answers(f"{url}/health"):
            time.sleep(0.5)
        times = {}
        for name, address, script in (("report", report, DRAWN), ("runs", runs, table)):
            loaded(browser, name, address, script, options.folder)
            times[name] = loaded(browser, name, address, script, options.folder)
    finally:
        browser.quit()
        os.killpg(server.pid, signal.SIGKILL)
    return {"seconds_to_load": times}
