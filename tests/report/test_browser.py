"""The page in Chromium: no error, no request, and everything on it works by mouse and by keyboard.

Needs Debian's chromium and chromium-driver. The test of accessibility also needs axe-core, which is not part of this
repository: `npm install --no-save axe-core`.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.attacked import write_attacked
from helpers.command import medattack
from helpers.pages import write_detection, write_trial
from helpers.runs import dice_of, write_run

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.select import Select  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
AXE = Path(os.environ.get("MEDATTACK_AXE", Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"))
pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromium-driver"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
DRAWN = "svg .role-mark path, svg .role-mark line"
WIDTHS = {"phone": 390, "screen": 1440}


def write_acdc(root: Path, source: Path) -> None:
    """Runs on six patients of ACDC: a small network that was trained for an epoch, under two attacks."""
    for n in range(1, 7):
        name = f"patient{n:03d}"
        (root / "scans" / "training").mkdir(parents=True, exist_ok=True)
        (root / "scans" / "training" / name).symlink_to((source / "training" / name).resolve())
    medattack("prepare", root / "scans", "--format", "acdc", "--size", "96,96", "--test", "0.5", "--out", root / "data")
    options = ("--data", root / "data", "--home", root / "home")
    small = ("--model", "unet_small(channels=(4, 8))", "--epochs", "1", "--size", "64,64")
    medattack("train", *small, *options, "--out", root / "model")
    attacks = ("--attack", "fgsm", "--attack", "pgd(steps=2)", "--eps", "4/255", "--eps", "40/255", "--no-checks")
    medattack("attack", "--model", root / "model", *attacks, *options, "--out", root / "runs")


REAL = pytest.param("acdc", marks=[pytest.mark.data, pytest.mark.slow])


@pytest.fixture(scope="module", params=["slices", "volumes", REAL])
def page(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, real_data: Callable[[str], Path]
) -> str:
    """The address of a page with two attacks at two budgets, pictures, and names that are markup."""
    root = tmp_path_factory.mktemp("browser")
    if request.param == "acdc":
        write_acdc(root, real_data("acdc"))
    elif request.param == "volumes":
        write_attacked(root, attacks=("pgd(steps=2)", "pgd(steps=3)"), dims=3)  # a start that differs by slice
    else:
        write_attacked(root, attacks=("fgsm", "pgd(steps=2)"))
    strange = {"model": "<b>x</b>", "organs": ["<i>liver</i>", "spleen"], "names": "<u>{}</u>"}
    write_run(root / "runs" / "other", dice_of(0, 5)[:, :, :2], **strange)
    medattack("report", root / "runs", "--out", root / "page", "--home", root / "home", "--trust")
    return (root / "page" / "index.html").as_uri()


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The addresses of a page with a defence and a detector, of a card, and of a leaderboard."""
    root = tmp_path_factory.mktemp("others")
    flag = {"code": "MA007", "verdict": "upper bound on robustness", "title": "more steps", "about": "x", "seen": "y"}
    long = "guarded('unet_small', layers=(bit_depth(bits=3), median(3), jpeg(quality=75)))"
    write_run(root / "in" / "runs", dice_of(0, 7), model="unet", flags=[flag | {"todo": "raise steps"}])
    write_trial(root / "in" / "trial", long, "twin")
    write_detection(root / "in" / "detectors", model="unet")
    out = root / "out"
    medattack("report", root / "in", "--out", out, "--worst", 0)
    medattack("report", root / "in", "--card", "--entry", "--out", out)
    medattack("leaderboard", out, "--out", out / "board")
    (card,) = out.glob("card-unet-a.html")
    files = {"page": out / "index.html", "card": card, "leaderboard": out / "board" / "index.html"}
    return {name: file.as_uri() for name, file in files.items()}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser: Any, page: str) -> Any:
    size(browser, WIDTHS["screen"])
    browser.get(page)
    return browser


def size(browser: Any, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def wait(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def show_all(browser: Any) -> None:
    """Scrolls through the page until every chart is drawn that has points."""
    for chart in browser.find_elements(By.CSS_SELECTOR, "figure:not([hidden]) .chart"):
        browser.execute_script("arguments[0].scrollIntoView()", chart)
        wait(lambda chart=chart: chart.find_elements(By.CSS_SELECTOR, DRAWN) or is_hidden(chart))


def is_hidden(chart: Any) -> bool:
    return not chart.is_displayed()


def rows(browser: Any) -> list[list[str]]:
    """The texts of the rows that are shown."""
    script = "return [...document.querySelectorAll('#runs tbody tr')].filter(r => !r.hidden)"
    texts: list[list[str]] = browser.execute_script(script + ".map(r => [...r.cells].map(c => c.textContent.trim()))")
    return texts


def head(browser: Any, name: str) -> Any:
    return browser.find_element(By.CSS_SELECTOR, f"#runs th[data-name={name}] button")


def test_the_page_makes_no_error_and_no_request(browser: Any, page: str) -> None:
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(page)
    show_all(browser)
    assert browser.get_log("browser") == []
    assert requests(browser) == {page}


def requests(browser: Any) -> set[str]:
    """What the browser asked for since the last time, the pictures in the page aside."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    }
    return {url for url in urls if not url.startswith("data:image/png;base64,")}


@pytest.mark.parametrize("name", ["page", "card", "leaderboard"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_results_beside_attacks_cards_and_boards_fit_the_screen(
    browser: Any, others: dict[str, str], name: str, width: int
) -> None:
    size(browser, width)
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(others[name])
    assert browser.get_log("browser") == []
    assert requests(browser) == {others[name]}
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    cut = "return [...document.querySelectorAll('.sheet td, .sheet th')].filter(c => c.scrollWidth > c.clientWidth + 1)"
    assert browser.execute_script(f"{cut}.map(c => c.textContent)") == []


def test_a_click_or_a_key_on_a_head_sorts(opened: Any) -> None:
    def numbers() -> list[float]:
        return [float(row[6]) for row in rows(opened)]

    assert numbers() != sorted(numbers())
    head(opened, "adv").click()
    assert numbers() == sorted(numbers())
    head(opened, "adv").send_keys(Keys.ENTER)
    assert numbers() == sorted(numbers(), reverse=True)
    assert opened.find_element(By.CSS_SELECTOR, "th[data-name=adv]").get_attribute("aria-sort") == "descending"
    head(opened, "model").click()
    assert [row[0] for row in rows(opened)] == sorted(row[0] for row in rows(opened))


def test_organ_model_and_attack_choose_the_rows(opened: Any) -> None:
    assert {row[4] for row in rows(opened)} == {"mean"}
    organ = Select(opened.find_element(By.ID, "organ"))
    name = organ.options[2].text
    organ.select_by_visible_text(name)
    assert {row[4] for row in rows(opened)} == {name}
    model = opened.find_element(By.ID, "model")
    first = next(option.text for option in Select(model).options[1:] if not option.text.startswith("<b>"))
    model.send_keys(first[:3])  # by keys
    wait(lambda: {row[0] for row in rows(opened)} == {first})
    Select(opened.find_element(By.ID, "attack")).select_by_visible_text("pgd(steps=2)")
    assert {row[1] for row in rows(opened)} == {"pgd(steps=2)"}
    assert opened.find_element(By.ID, "count").text.startswith(f"{len(rows(opened))} of ")
    assert "pgd(steps=2)" in opened.find_element(By.ID, "chosen").text


def test_another_run_shows_its_patients(opened: Any) -> None:
    run = Select(opened.find_element(By.ID, "run"))
    (other,) = [option.text for option in run.options if option.text.startswith("<b>x</b>")]
    run.select_by_visible_text(other)
    assert opened.find_element(By.ID, "run-name").text == f"{other}."
    summary = opened.find_element(By.CSS_SELECTOR, "#patients summary")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", summary)
    summary.send_keys(Keys.ENTER)
    text = opened.find_element(By.ID, "each").text
    assert "<u>p00</u>" in text
    show_all(opened)
    marked = opened.find_elements(By.CSS_SELECTOR, "main b, main i, main u, #vg-tooltip-element u")
    assert [element.text for element in marked if element.text != "What to do:"] == []


def shown(browser: Any, view: str) -> str:
    return str(browser.find_element(By.CSS_SELECTOR, f".case .{view} img").get_attribute("src"))


def test_keys_on_the_slider_change_the_slice(opened: Any) -> None:
    slider = opened.find_element(By.CSS_SELECTOR, ".case input[type=range]")
    slider.send_keys(Keys.HOME)
    views = ("clean", "attacked", "difference")
    before = [shown(opened, view) for view in views]
    name = opened.find_element(By.CSS_SELECTOR, ".case output").text
    slider.send_keys(Keys.ARROW_RIGHT)
    assert all(shown(opened, view) != old for view, old in zip(views, before, strict=True))
    assert opened.find_element(By.CSS_SELECTOR, ".case output").text != name
    assert slider.get_attribute("aria-valuetext") == opened.find_element(By.CSS_SELECTOR, ".case output").text


@pytest.mark.parametrize("press", [lambda button: button.click(), lambda button: button.send_keys(Keys.SPACE)])
def test_blinking_puts_the_untouched_scan_in_the_place_of_the_attacked_one(
    opened: Any, press: Callable[[Any], None]
) -> None:
    button = opened.find_element(By.CSS_SELECTOR, ".case .blink")
    clean, attacked = shown(opened, "clean"), shown(opened, "attacked")
    assert clean != attacked
    press(button)
    wait(lambda: shown(opened, "attacked") == clean)
    assert button.get_attribute("aria-pressed") == "true"
    assert opened.find_element(By.CSS_SELECTOR, ".case .attacked figcaption").text == "untouched"
    wait(lambda: shown(opened, "attacked") == attacked)  # and back
    press(button)
    wait(lambda: shown(opened, "attacked") == attacked)
    assert button.get_attribute("aria-pressed") == "false"


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_nothing_is_wider_than_the_screen_and_no_words_overlap(browser: Any, page: str, width: int) -> None:
    size(browser, width)
    browser.get(page)
    show_all(browser)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    overlaps = browser.execute_script(
        """
        const isShown = (text) => text.textContent && text.getAttribute("opacity") !== "0";
        const texts = [...document.querySelectorAll(".chart")].map((chart) => [...chart.querySelectorAll("text")]
          .filter(isShown).map((text) => [text.textContent, text.getBoundingClientRect()]));
        const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
          && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2;
        return texts.flatMap((of) => of.flatMap(([name, box], i) => of.slice(i + 1)
          .filter(([, other]) => meet(box, other)).map(([other]) => `${name} / ${other}`)));
        """
    )
    assert overlaps == []


@pytest.mark.parametrize("width", [390, pytest.param(1200, marks=pytest.mark.slow), 1440])
def test_the_table_fits_the_screen_and_all_columns_are_a_key_away(browser: Any, page: str, width: int) -> None:
    size(browser, width)
    browser.get(page)
    frame = browser.find_element(By.CSS_SELECTOR, "#table .scroll")

    def names() -> list[str]:
        heads = browser.find_elements(By.CSS_SELECTOR, "#runs th[data-name]")
        return [head.get_attribute("data-name") for head in heads if head.is_displayed()]

    for organ in (0, 1):  # all, and the mean
        Select(browser.find_element(By.ID, "organ")).select_by_index(organ)
        assert browser.execute_script("return arguments[0].scrollWidth - arguments[0].clientWidth", frame) <= 1
        assert {"model", "attack", "eps", "adv", "interval"} <= set(names())
    Select(browser.find_element(By.ID, "organ")).select_by_index(0)
    if "organ" not in names():  # then it stands below the attack, with the loss
        cell = browser.find_element(By.CSS_SELECTOR, "#runs tr:not([hidden]) [data-of]")
        shown = browser.execute_script("return getComputedStyle(arguments[0], '::after').content", cell)
        assert cell.get_attribute("data-of") in shown
    box = browser.find_element(By.CSS_SELECTOR, "#columns input")
    if box.is_displayed():
        box.send_keys(Keys.SPACE)
        assert {"loss", "clean", "drop", "relative_drop", "patients", "flags"} <= set(names())
        box.send_keys(Keys.SPACE)
    assert len(names()) >= (5 if width == 390 else 8)


def test_on_paper_colours_are_printed_and_charts_are_no_wider_than_the_page(opened: Any) -> None:
    """Paper has no background colours unless they are asked for, and charts were drawn for the screen."""
    show_all(opened)
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})

    def styles(selector: str, name: str) -> set[str]:
        script = f"[...document.querySelectorAll('{selector}')].map((e) => getComputedStyle(e).{name})"
        return set(opened.execute_script(f"return {script}"))

    assert styles(".swatch", "printColorAdjust") == {"exact"}
    assert styles(".chart svg", "maxWidth") == {"100%"}
    assert styles("h2, .axis, .note:has(+ .charts)", "breakAfter") == {"avoid"}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


@pytest.mark.skipif(not AXE.exists(), reason="needs axe-core: npm install --no-save axe-core")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["attacks", "page", "card", "leaderboard"])
def test_axe_finds_no_serious_fault(browser: Any, page: str, others: dict[str, str], name: str, scheme: str) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    size(browser, WIDTHS["screen"])
    browser.get((others | {"attacks": page})[name])
    show_all(browser)
    browser.execute_script(AXE.read_text(encoding="utf-8"))
    faults = browser.execute_async_script(
        "const done = arguments[0]; axe.run().then((result) => done(result.violations))"
    )
    serious = [
        (fault["id"], fault["nodes"][0]["html"][:200]) for fault in faults if fault["impact"] in ("serious", "critical")
    ]
    assert serious == []
