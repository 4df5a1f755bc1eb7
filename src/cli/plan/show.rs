//! A plan for people: every object as YAML, or one line per step.

use std::fmt::Write as _;

use super::{Failure, Outcome, State, disruption::Disruption};

const NO_UID: &str =
    "# The id (in g8s-…) and a chosen VNI follow from the UID that the API server gives: those shown are examples.\n";

/// A YAML stream. Each document's comment says what the object is for, what becomes of it, and what it waits for.
pub(super) fn yaml(outcome: &Outcome) -> Result<String, Failure> {
    let mut out = String::from(if outcome.has_uid { "" } else { NO_UID });
    for change in &outcome.changes {
        let step = &change.step;
        write!(out, "--- # {} {}: {}, {}", change.state.sign(), step.part, step.purpose, step.object)?;
        if !step.waits_for.is_empty() {
            write!(out, "; waits for {}", step.waits_for.join(", "))?;
        }
        write!(out, "\n{}", serde_saphyr::to_string(&step.body)?)?;
    }
    if let Some(paused) = paused(outcome) {
        writeln!(out, "--- # {paused}")?;
    }
    Ok(out)
}

/// One line per step, what each waits for, and at the end which nodes roll and whom that disturbs.
pub(super) fn summary(outcome: &Outcome) -> String {
    let mut lines: Vec<String> = Vec::new();
    if !outcome.has_uid {
        lines.push(NO_UID.trim_end().into());
    }
    for change in &outcome.changes {
        let step = &change.step;
        let rolls = match (&step.rolls, &change.state) {
            (Some(_), State::Changed) => " (rolls)",
            _ => "",
        };
        lines.push(format!("{} {:<8} {}{rolls}", change.state.sign(), step.part, step.object));
        if let State::Unknown(why) = &change.state {
            lines.push(format!("             {why}"));
        }
        if !step.waits_for.is_empty() && change.state != State::Unchanged {
            lines.push(format!("             waits for: {}", step.waits_for.join(", ")));
        }
    }
    lines.extend(paused(outcome).map(|paused| format!("? {paused}")));
    let rolling = outcome.changes.iter().filter(|change| change.state == State::Changed);
    let rolling: Vec<_> = rolling.filter_map(|change| change.step.rolls.as_deref()).collect();
    lines.push(match rolling.as_slice() {
        [] => "no node rolls".into(),
        nodes => format!("nodes that roll: {}", nodes.join(", ")),
    });
    lines.push(format!("disruption: {}", Disruption::of(outcome)));
    lines.join("\n") + "\n"
}

fn paused(outcome: &Outcome) -> Option<String> {
    outcome.valid.paused_until.map(|until| format!("spec.pausedUntil: nothing is done before {until}"))
}
