//! What the demonstration shows while it runs.
//!
//! Owns words and progress bars. With `--json` the words are talk on standard error, since standard
//! output is the summary's. Decides nothing.

use crate::output::{Output, Tone};
use indicatif::{BinaryBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal as _;
use std::time::Duration;

/// Where words and bars go.
#[derive(Debug)]
pub(crate) struct Show<'a> {
    output: &'a Output,
    bars: bool,
}

impl<'a> Show<'a> {
    pub(crate) fn new(output: &'a Output) -> Self {
        Self {
            output,
            bars: std::io::stderr().is_terminal(),
        }
    }

    /// The heading of a step.
    pub(crate) fn step(&self, number: usize, title: &str) {
        let painter = self.output.painter;
        self.say(&painter.paint(Tone::Strong, format!("{number}. {title}")));
    }

    /// A sentence of a step.
    pub(crate) fn tell(&self, text: &str) {
        self.say(&format!("   {text}"));
    }

    /// A promise that was kept.
    pub(crate) fn kept(&self, text: &str) {
        let good = self.output.painter.paint(Tone::Good, "kept:");
        self.say(&format!("   {good} {text}"));
    }

    /// A promise that was broken.
    pub(crate) fn broken(&self, text: &str) {
        let bad = self.output.painter.paint(Tone::Bad, "BROKEN:");
        self.say(&format!("   {bad} {text}"));
    }

    /// The last line.
    pub(crate) fn end(&self, ok: bool, text: &str) {
        let tone = if ok { Tone::Good } else { Tone::Bad };
        self.say(&self.output.painter.paint(tone, text));
    }

    fn say(&self, text: &str) {
        if self.output.json {
            self.output.talk(text);
        } else {
            self.output.data(&format!("{text}\n"));
        }
    }

    /// A bar over bytes.
    pub(crate) fn bytes_bar(&self, total: u64) -> Bar {
        let form = "   [{bar:30}] {percent:>3} % {binary_bytes}/{binary_total_bytes} \
                    {binary_bytes_per_sec} {msg}";
        self.bar(total, form)
    }

    /// A bar over time.
    pub(crate) fn time_bar(&self, time: Duration) -> Bar {
        let total = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.bar(total, "   [{bar:30}] {msg}")
    }

    fn bar(&self, total: u64, form: &str) -> Bar {
        let target = if self.bars {
            ProgressDrawTarget::stderr_with_hz(10)
        } else {
            ProgressDrawTarget::hidden()
        };
        let style = ProgressStyle::with_template(form);
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        Bar(ProgressBar::with_draw_target(Some(total), target)
            .with_style(style.progress_chars("=> ")))
    }
}

/// A bar that is gone when its value is.
#[derive(Debug)]
pub(crate) struct Bar(ProgressBar);

impl Bar {
    pub(crate) fn set_length(&self, total: u64) {
        self.0.set_length(total);
    }

    pub(crate) fn set(&self, position: u64, text: String) {
        self.0.set_position(position);
        self.0.set_message(text);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Bytes for a person.
pub(crate) fn bytes(count: u64) -> String {
    BinaryBytes(count).to_string()
}
