//! Replies as text for people.
//!
//! Owns the layout. A reply enters, text leaves; nothing is asked or printed here.

mod note;
mod status;

pub(crate) use note::note;
pub(crate) use status::{schedule, status};

use crate::output::{Painter, Tone};
use blkrep_api::{DoctorReport, EventRecord, FindingLevel, NodeList, SettingReply, Severity};
use std::fmt::Write as _;

/// Appends to a string, which takes all text.
macro_rules! put {
    ($text:expr, $($part:tt)*) => {
        writeln!($text, $($part)*).expect("a String takes all text")
    };
}
pub(crate) use put;

/// One event on a line, with what to do on the next if there is something.
pub(crate) fn event(painter: Painter, event: &EventRecord) -> String {
    let tone = match event.severity {
        Severity::Info => Tone::Plain,
        Severity::Warning => Tone::Warn,
        Severity::Error => Tone::Bad,
    };
    let mut concerns = String::new();
    for (what, name) in [
        ("group", event.group.as_ref().map(|name| name.as_str())),
        ("volume", event.volume.as_ref().map(|name| name.as_str())),
        ("link", event.link.as_ref().map(|name| name.as_str())),
    ] {
        if let Some(name) = name {
            write!(concerns, " {what} {name}:").expect("a String takes all text");
        }
    }
    let time = event.time.strftime("%Y-%m-%dT%H:%M:%SZ");
    let mut text = String::new();
    put!(
        text,
        "{} {} {} {}{} {}",
        painter.paint(Tone::Faint, event.cursor),
        time,
        painter.paint(tone, format!("{:<7}", event.severity)),
        painter.paint(Tone::Strong, format!("{} {}", event.number, event.name)),
        concerns,
        event.text
    );
    let response = event.name.response();
    if event.severity != Severity::Info && !response.is_empty() {
        put!(text, "    do: {response}");
    }
    text
}

/// One node a line, this one first.
pub(crate) fn nodes(painter: Painter, list: &NodeList) -> String {
    let mut text = String::new();
    let own = list.fingerprint.as_deref();
    let own = own.unwrap_or("none yet: it is made at the first pairing");
    put!(
        text,
        "node {} (this one)",
        painter.paint(Tone::Strong, &list.node)
    );
    put!(text, "    certificate {}", painter.paint(Tone::Faint, own));
    if list.nodes.is_empty() {
        put!(text, "paired with nobody: blkctl node pair --invite");
    }
    for node in &list.nodes {
        let address = node.address.as_deref().unwrap_or("an unknown address");
        let name = painter.paint(Tone::Strong, &node.name);
        put!(
            text,
            "node {name} at {address}, remote control {}",
            node.role
        );
        let certificate = painter.paint(Tone::Faint, &node.fingerprint);
        put!(text, "    certificate {certificate}");
    }
    text
}

/// One finding a line, with meaning and action below those that are not well.
pub(crate) fn doctor(painter: Painter, report: &DoctorReport) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let (word, tone) = match finding.level {
            FindingLevel::Ok => ("ok", Tone::Good),
            FindingLevel::Note => ("note", Tone::Plain),
            FindingLevel::Warning => ("warning", Tone::Warn),
            FindingLevel::Error => ("error", Tone::Bad),
        };
        let word = painter.paint(tone, format!("{word:<7}"));
        put!(text, "{word} {:<16} {}", finding.check, finding.what);
        if !finding.meaning.is_empty() {
            put!(text, "        means: {}", finding.meaning);
        }
        if !finding.action.is_empty() {
            put!(text, "        do:    {}", finding.action);
        }
    }
    text
}

/// One setting a line; what was changed stands out.
pub(crate) fn settings(painter: Painter, reply: &SettingReply) -> String {
    let mut text = String::new();
    let wide = reply.settings.len() > 1;
    for setting in &reply.settings {
        let changed = setting.value != setting.default;
        let tone = if changed { Tone::Strong } else { Tone::Plain };
        let value = painter.paint(tone, format!("{:<10}", setting.value));
        let origin = serde_json::to_value(setting.origin).ok();
        let origin = origin.as_ref().and_then(|word| word.as_str()).unwrap_or("");
        let (key, default) = (&setting.key, &setting.default);
        let width = if wide { 28 } else { 0 };
        put!(
            text,
            "{key:<width$} {value} {origin:<8} default {default}; {}",
            setting.range
        );
        if !wide {
            put!(
                text,
                "{}\nA change takes effect {}.",
                setting.help,
                setting.applies
            );
        }
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use blkrep_api::{EventId, Finding, NewEvent, SCHEMA};
    use blkrep_types::GroupName;

    #[test]
    fn an_event_says_when_what_to_what_and_what_to_do() {
        let group = GroupName::new("db").unwrap();
        let new = NewEvent::new(EventId::LinkDown, "connection reset").group(&group);
        let time = "2026-11-21T04:00:00Z".parse().unwrap();
        let text = event(Painter::PLAIN, &EventRecord::record(new, 7, time));
        let first = text.lines().next().unwrap();
        assert_eq!(
            first,
            "7 2026-11-21T04:00:00Z warning 1203 link-down group db: connection reset"
        );
        assert!(text.contains("    do: Nothing if it comes back"));
    }

    #[test]
    fn a_finding_shows_meaning_and_action() {
        let report = DoctorReport {
            schema: SCHEMA,
            findings: vec![Finding {
                check: "fuse".to_owned(),
                level: FindingLevel::Note,
                what: "missing".to_owned(),
                meaning: "no loop".to_owned(),
                action: "load it".to_owned(),
            }],
        };
        let text = doctor(Painter::PLAIN, &report);
        assert_eq!(
            text,
            "note    fuse             missing\n        means: no loop\n        do:    load it\n"
        );
    }
}
