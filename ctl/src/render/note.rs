//! Bookmarks and tasks as text for people.

use super::put;
use crate::output::{Painter, Tone};
use blkrep_api::{NoteOnLink, NoteProgress, NoteSort, NoteStatus};
use std::fmt::Write as _;

const fn tone(state: NoteProgress) -> Tone {
    match state {
        NoteProgress::Done | NoteProgress::Set => Tone::Good,
        NoteProgress::Failed
        | NoteProgress::TimedOut
        | NoteProgress::Refused
        | NoteProgress::Interrupted => Tone::Bad,
        NoteProgress::Skipped | NoteProgress::Unable => Tone::Warn,
        NoteProgress::Queued
        | NoteProgress::Sent
        | NoteProgress::Waiting
        | NoteProgress::Running => Tone::Plain,
    }
}

/// What became of it on one link, in a line.
fn on_link(painter: Painter, link: &NoteOnLink) -> String {
    let mut text = String::new();
    if let Some(name) = &link.link {
        write!(text, "link {name}: ").expect("a String takes all text");
    }
    write!(text, "{}", painter.paint(tone(link.state), link.state))
        .expect("a String takes all text");
    if let Some(exit) = link.exit_status.filter(|exit| *exit != 0) {
        write!(text, ", exit status {exit}").expect("a String takes all text");
    }
    if let (Some(began), Some(ended)) = (link.began, link.ended)
        && ended > began
    {
        let span = ended.duration_since(began).as_secs_f64();
        write!(text, ", {span:.1} s").expect("a String takes all text");
    }
    text
}

/// One of them; `whole`: with what it said.
pub(crate) fn note(painter: Painter, note: &NoteStatus, whole: bool) -> String {
    let mut text = String::new();
    let time = note.submitted.strftime("%Y-%m-%dT%H:%M:%SZ");
    let what = match note.kind {
        NoteSort::Bookmark => note.text.clone(),
        NoteSort::Task if note.text.is_empty() => note.command.clone(),
        NoteSort::Task => format!("{} ({})", note.command, note.text),
    };
    put!(
        text,
        "{} {} write {}/{}: {}",
        painter.paint(Tone::Faint, note.id),
        time,
        note.incarnation,
        note.seq,
        painter.paint(Tone::Strong, what)
    );
    for link in &note.links {
        put!(text, "  {}", on_link(painter, link));
        let lines = link
            .output
            .lines()
            .filter(|_| whole || !link.state.is_good());
        let count = if whole { usize::MAX } else { 1 };
        for line in lines.take(count) {
            put!(text, "    {line}");
        }
    }
    text
}
