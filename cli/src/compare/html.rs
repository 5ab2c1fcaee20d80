//! The report as one page: tables, and the latencies as curves drawn into it. Nothing is loaded
//! from elsewhere.

use std::fmt::Write;

use alluvium_workloads::{CaseReport, Report, micros};
use plotters::prelude::*;

type DrawError = Box<dyn std::error::Error>;

/// Size of a chart in pixels.
const CHART: (u32, u32) = (860, 340);
/// Colours of the contenders, in their order; distinguishable for the colour-blind.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(150, 130, 20),
    RGBColor(90, 90, 90),
];

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}\
table{border-collapse:collapse;font-size:13px}\
th,td{padding:.25em .7em;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}\
th:first-child,td:first-child{text-align:left}\
h2{margin:2em 0 .2em}p{margin:.3em 0}.note{color:#666;font-size:13px}\
.swatch{display:inline-block;width:.8em;height:.8em;margin-right:.5em}\
svg{max-width:100%;height:auto}";

/// The whole page.
pub(super) fn page(report: &Report) -> Result<String, DrawError> {
    let mut page = String::new();
    let title = "Alluvium on this machine";
    write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\
         <meta name=\"viewport\" content=\"width=device-width\"/><title>{title}</title>\
         <style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n<p>{}</p>\n\
         <p>Medians of {} interleaved rounds of {} s.</p>\n",
        escaped(&report.machine.describe()),
        report.rounds,
        report.seconds,
    )?;
    if let Some(why) = &report.syscalls_refused {
        let why = escaped(why);
        writeln!(
            page,
            "<p class=\"note\">System calls are not counted: {why}</p>"
        )?;
    }
    for case in &report.cases {
        add_case(&mut page, case)?;
    }
    page.push_str("</body></html>\n");
    Ok(page)
}

fn add_case(page: &mut String, case: &CaseReport) -> Result<(), DrawError> {
    let table = case.table();
    write!(
        page,
        "<h2>{}</h2>\n<p>{} One operation: {}.</p>\n{}\n<table><thead><tr>",
        escaped(&case.name),
        escaped(&case.what),
        escaped(&case.operation),
        curves(case)?,
    )?;
    for head in &table.header {
        write!(page, "<th>{}</th>", escaped(head))?;
    }
    page.push_str("</tr></thead><tbody>\n");
    for (row, colour) in table.rows.iter().zip(COLOURS.iter().cycle()) {
        page.push_str("<tr>");
        for (n, cell) in row.iter().enumerate() {
            page.push_str("<td>");
            if n == 0 {
                let RGBColor(r, g, b) = colour;
                write!(
                    page,
                    "<span class=\"swatch\" style=\"background:rgb({r},{g},{b})\"></span>"
                )?;
            }
            write!(page, "{}</td>", escaped(cell))?;
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody></table>\n");
    for note in &table.notes {
        writeln!(page, "<p class=\"note\">{}</p>", escaped(note))?;
    }
    Ok(())
}

/// Latency over percentile, both logarithmic: the tail has as much room as the middle.
fn curves(case: &CaseReport) -> Result<String, DrawError> {
    let all = || case.contenders.iter().flat_map(|c| &c.latency_us);
    let rarest = all().map(|&(q, _)| beyond(q)).fold(10.0, f64::max);
    let lowest = all().map(|&(_, us)| us).fold(f64::INFINITY, f64::min);
    let highest = all().map(|&(_, us)| us).fold(0.0, f64::max);
    if !lowest.is_finite() {
        return Ok(String::new());
    }
    // A latency below the clock's resolution has a place on the axis, too.
    let lowest = (lowest / 1.5).max(0.01);
    let highest = (highest * 1.5).max(lowest * 10.0);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, CHART).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(8)
            .x_label_area_size(42)
            .y_label_area_size(84)
            .build_cartesian_2d((1.0..rarest).log_scale(), (lowest..highest).log_scale())?;
        chart
            .configure_mesh()
            .light_line_style(RGBColor(242, 242, 242))
            .bold_line_style(RGBColor(224, 224, 224))
            .x_desc("operations not slower (percentile)")
            .y_desc("latency")
            .x_label_formatter(&|&x| percentile(x))
            .y_label_formatter(&|&us| micros(us))
            .draw()?;
        for (contender, &colour) in case.contenders.iter().zip(COLOURS.iter().cycle()) {
            let points = contender.latency_us.iter();
            let points = points.map(|&(q, us)| (beyond(q), us.max(lowest)));
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
                .label(contender.name.clone())
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2))
                });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(208, 208, 208))
            .draw()?;
        root.present()?;
    }
    Ok(svg)
}

/// One in how many operations is slower than those of the quantile.
fn beyond(quantile: f64) -> f64 {
    1.0 / (1.0 - quantile).max(1e-9)
}

/// The percentile that one in so many operations is slower than.
fn percentile(one_in: f64) -> String {
    let text = format!("{:.6}", 100.0 - 100.0 / one_in);
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text} %")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_people_know() {
        assert_eq!(percentile(1.0), "0 %");
        assert_eq!(percentile(10.0), "90 %");
        assert_eq!(percentile(1_000.0), "99.9 %");
        assert_eq!(percentile(1e6), "99.9999 %");
        assert!((beyond(0.99) - 100.0).abs() < 1e-6);
        assert!(beyond(1.0).is_finite());
    }

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(escaped("<a b=\"&\">"), "&lt;a b=&quot;&amp;&quot;&gt;");
    }
}
