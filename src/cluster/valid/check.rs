//! Collecting violations.

use std::{fmt, ops::RangeInclusive};

use k8s_openapi::jiff::{Timestamp, civil::DateTime};

use super::text;

/// What is wrong with a field of a Cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field, such as `spec.network.overlay.cidr` or `spec.nodePools[0].name`.
    pub field: String,
    /// What is wrong, and what would be right.
    pub problem: String,
}

impl Violation {
    /// A violation.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.problem)
    }
}

/// Collects violations; every method answers a value that is only used if there are none.
#[derive(Debug, Default)]
pub(super) struct Check {
    violations: Vec<Violation>,
}

impl Check {
    pub(super) fn fail(&mut self, field: impl Into<String>, problem: impl Into<String>) {
        self.violations.push(Violation::new(field, problem));
    }

    /// The value, if nothing was wrong.
    pub(super) fn finish<T>(self, value: T) -> Result<T, Vec<Violation>> {
        if self.violations.is_empty() { Ok(value) } else { Err(self.violations) }
    }

    /// Fails unless `holds`; the value is shown, but never more of it than a person reads.
    pub(super) fn text(&mut self, field: impl Into<String>, value: &str, holds: bool, wanted: &str) {
        if !holds {
            self.fail(field, format!("{} {wanted}", text::shown(value)));
        }
    }

    /// A number within bounds.
    pub(super) fn number(&mut self, field: impl Into<String>, value: i32, bounds: RangeInclusive<u32>) -> u32 {
        match u32::try_from(value) {
            Ok(number) if bounds.contains(&number) => number,
            _ => {
                self.fail(field, format!("{value} must be between {} and {}", bounds.start(), bounds.end()));
                *bounds.start()
            }
        }
    }

    /// A list or map that is not too long.
    pub(super) fn count(&mut self, field: &str, count: usize, most: usize) {
        if count > most {
            self.fail(field, format!("has {count} entries and may have {most}"));
        }
    }

    /// A point in time.
    pub(super) fn time(&mut self, field: &str, value: Option<&str>) -> Option<Timestamp> {
        let value = value?;
        // A day of the calendar that lies beyond what a timestamp holds is as good as never.
        let parsed = value
            .parse::<Timestamp>()
            .ok()
            .or_else(|| value.get(..19)?.parse::<DateTime>().ok().map(|_| Timestamp::MAX));
        let time = parsed.filter(|_| text::is_time(value));
        self.text(field, value, time.is_some(), "must be a time such as 2026-12-24T18:00:00Z");
        time
    }

    /// The name of a Cluster: labels, host names and names of other objects are made of it.
    pub(super) fn cluster_name(&mut self, name: &str) {
        self.text("metadata.name", name, name.chars().count() <= 52, "must have at most 52 characters");
        self.text("metadata.name", name, text::is_label(name), "must be a DNS label: a-z, 0-9 and -, without dots");
    }
}
