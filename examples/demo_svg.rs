//! Draws the report of `steadfs demo --json` (standard input) as an SVG (standard output): `docs/demo.svg` is made so.

use std::io::Read;
use std::process::ExitCode;

use serde_json::Value;

const WIDTH: f64 = 900.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 64.0;
const HEIGHT: f64 = 110.0;
const BAND: f64 = 14.0;

fn main() -> ExitCode {
    let mut text = String::new();
    let report = std::io::stdin().read_to_string(&mut text).map_err(|e| e.to_string());
    match report.and_then(|_| serde_json::from_str(&text).map_err(|e| e.to_string())).and_then(|r| draw(&r)) {
        Ok(svg) => {
            println!("{svg}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("demo_svg: {error}");
            ExitCode::FAILURE
        }
    }
}

fn draw(report: &Value) -> Result<String, String> {
    let samples = report["samples"].as_array().ok_or("no samples")?;
    let faults = report["faults"].as_array().ok_or("no faults")?;
    let at = |sample: &Value| sample["at_seconds"].as_f64().unwrap_or(0.0);
    let end = samples.last().map(at).filter(|end| *end > 0.0).ok_or("an empty run")?;
    let x = |seconds: f64| LEFT + seconds / end * (WIDTH - LEFT - 20.0);

    let mut bins = vec![0.0_f64; (end * 2.0) as usize + 1];
    for sample in samples {
        bins[(at(sample) * 2.0) as usize] += sample["bytes"].as_f64().unwrap_or(0.0) * 2.0 / 1e6;
    }
    // The last one is cut off by the end of the run.
    bins.pop();
    let most = bins.iter().copied().fold(0.1, f64::max);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} 330\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"330\" fill=\"#ffffff\"/>\n"
    );
    let mut put = |line: String| {
        out.push_str(&line);
        out.push('\n');
    };
    put(label(
        LEFT,
        22.0,
        "start",
        "#111111",
        "A crawl through four faults: MB/s committed by fsync, and the state of the mount",
    ));
    for (n, rate) in bins.iter().enumerate() {
        let (left, right, tall) = (x(n as f64 / 2.0), x((n + 1) as f64 / 2.0), rate / most * HEIGHT);
        put(rect(left, TOP + HEIGHT - tall, right - left - 0.7, tall, "#4a7fb5"));
    }
    put(label(LEFT - 8.0, TOP + 8.0, "end", "#555555", &format!("{most:.1}")));
    put(label(LEFT - 8.0, TOP + HEIGHT, "end", "#555555", "0 MB/s"));
    let band = TOP + HEIGHT + 8.0;
    put(label(LEFT - 8.0, band + 11.0, "end", "#555555", "mount"));
    for pair in samples.windows(2) {
        let (left, right) = (x(at(&pair[0])), x(at(&pair[1])));
        put(rect(left, band, right - left + 0.3, BAND, colour(pair[0]["state"].as_str().unwrap_or_default())));
    }
    for second in (0..=end as u32).step_by(5) {
        put(label(x(f64::from(second)), band + 30.0, "middle", "#555555", &format!("{second} s")));
    }
    for (n, fault) in faults.iter().enumerate() {
        let here = x(fault["at_seconds"].as_f64().unwrap_or(0.0));
        put(format!(
            "<line x1=\"{here:.1}\" y1=\"{:.1}\" x2=\"{here:.1}\" y2=\"{:.1}\" stroke=\"#b03030\" stroke-dasharray=\"3 2\"/>",
            TOP - 8.0,
            band + BAND
        ));
        put(label(here, TOP - 14.0, "middle", "#b03030", &(n + 1).to_string()));
        put(label(LEFT, band + 56.0 + n as f64 * 18.0, "start", "#111111", &sentence(n, fault)));
    }
    let verdict = if report["kept"] == true { "nothing that was acknowledged is lost" } else { "FAILED" };
    let last = band + 62.0 + faults.len() as f64 * 18.0;
    let legend = "green: live, amber: suspect, red: outage";
    put(label(LEFT, last + 4.0, "start", "#555555", &format!("{legend}. On the store afterwards: {verdict}.")));
    out.push_str("</svg>");
    Ok(out)
}

fn sentence(n: usize, fault: &Value) -> String {
    let number = |name: &str| fault[name].as_f64();
    let back = match (number("back_after_lifted_seconds"), number("back_after_seconds")) {
        (Some(lifted), _) => format!("{lifted:.1} s after it was lifted"),
        (None, Some(back)) => format!("after {back:.1} s"),
        (None, None) => "never".into(),
    };
    let name = fault["name"].as_str().unwrap_or_default();
    let call = number("longest_call_seconds").unwrap_or(0.0);
    format!("{} {name}: same descriptors write again {back}; longest call {call:.1} s", n + 1)
}

fn colour(state: &str) -> &'static str {
    match state {
        "live" => "#3a9a5c",
        "suspect" => "#e0a030",
        _ => "#c04040",
    }
}

fn rect(x: f64, y: f64, width: f64, height: f64, fill: &str) -> String {
    format!("<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\"/>")
}

fn label(x: f64, y: f64, anchor: &str, fill: &str, text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{fill}\">{text}</text>")
}
