//! What a metric is called and means: said once, for its series and for docs/metrics.md.

use std::{
    collections::HashMap,
    ops::Deref,
    sync::{LazyLock, OnceLock},
};

use prometheus::{
    Encoder as _, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
    core::{Collector, Desc},
    proto::{self, LabelPair, MetricFamily, MetricType},
};

static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::new);

/// A metric: what it is called and means.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name, which does not change.
    pub name: &'static str,
    /// Of which sort it is.
    pub kind: Kind,
    /// Its labels, each with the values that it may have.
    pub labels: &'static [(&'static str, &'static str)],
    /// What it says, on one line.
    pub help: &'static str,
}

/// A sort of metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// It only grows, until the process begins anew.
    Counter,
    /// It is as it is now.
    Gauge,
    /// It counts what is at most as large as each of these bounds.
    Histogram(&'static [f64]),
    /// Its sum and its count alone.
    Summary,
}

impl Kind {
    /// The word in Prometheus' text format.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
            Self::Summary => "summary",
        }
    }
}

impl Metric {
    /// Its line in a table of docs/metrics.md.
    pub fn row(&self) -> String {
        let labels: Vec<_> = self.labels.iter().map(|(label, values)| format!("`{label}`: {values}")).collect();
        format!("| `{}` | {} | {} | {} |\n", self.name, self.kind.name(), labels.join("; "), self.help)
    }

    /// The series of gauges, each by the values of its labels in their order.
    pub fn family(&self, series: impl IntoIterator<Item = (Vec<String>, f64)>) -> MetricFamily {
        let sample = |(values, value): (Vec<String>, f64)| {
            let mut gauge = proto::Gauge::default();
            gauge.set_value(value);
            let mut sample = proto::Metric::from_gauge(gauge);
            sample.set_label(self.label_names().zip(values).map(pair).collect());
            sample
        };
        let mut family = MetricFamily::default();
        family.set_name(self.name.into());
        family.set_help(self.help.into());
        family.set_field_type(MetricType::GAUGE);
        family.set_metric(series.into_iter().map(sample).collect());
        family
    }

    /// Its description, as a collector owes it to the registry.
    ///
    /// # Errors
    /// If its name is none.
    pub fn desc(&self) -> prometheus::Result<Desc> {
        let labels = self.label_names().map(Into::into).collect();
        Desc::new(self.name.into(), self.help.into(), labels, HashMap::new())
    }

    fn label_names(&self) -> impl Iterator<Item = &'static str> {
        self.labels.iter().map(|(label, _)| *label)
    }

    fn opts(&self) -> (Opts, Vec<&'static str>) {
        (Opts::new(self.name, self.help), self.label_names().collect())
    }
}

fn pair((name, value): (&str, String)) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.into());
    pair.set_value(value);
    pair
}

/// A metric whose series this process keeps. They are shown from their first use on.
#[derive(Debug)]
pub struct Declared<C> {
    /// What it is called and means.
    pub metric: Metric,
    make: fn(&Metric) -> prometheus::Result<C>,
    made: OnceLock<C>,
}

impl<C> Declared<C> {
    /// A metric that is made so when it is first used.
    pub const fn new(metric: Metric, make: fn(&Metric) -> prometheus::Result<C>) -> Self {
        Self { metric, make, made: OnceLock::new() }
    }
}

impl Declared<IntCounter> {
    /// One counter.
    pub const fn counter(metric: Metric) -> Self {
        Self::new(metric, |metric| IntCounter::with_opts(metric.opts().0))
    }
}

impl Declared<IntCounterVec> {
    /// Counters, one for each combination of the labels' values.
    pub const fn counters(metric: Metric) -> Self {
        Self::new(metric, |metric| {
            let (opts, labels) = metric.opts();
            IntCounterVec::new(opts, &labels)
        })
    }
}

impl Declared<IntGaugeVec> {
    /// Gauges, one for each combination of the labels' values.
    pub const fn gauges(metric: Metric) -> Self {
        Self::new(metric, |metric| {
            let (opts, labels) = metric.opts();
            IntGaugeVec::new(opts, &labels)
        })
    }
}

impl Declared<IntGauge> {
    /// One gauge.
    pub const fn gauge(metric: Metric) -> Self {
        Self::new(metric, |metric| IntGauge::with_opts(metric.opts().0))
    }
}

impl Declared<HistogramVec> {
    /// Histograms, one for each combination of the labels' values.
    pub const fn histograms(metric: Metric) -> Self {
        Self::new(metric, |metric| {
            let (common_opts, labels) = metric.opts();
            let buckets = if let Kind::Histogram(bounds) = metric.kind { bounds.to_vec() } else { Vec::new() };
            HistogramVec::new(HistogramOpts { common_opts, buckets }, &labels)
        })
    }
}

impl<C: Collector + Clone + 'static> Deref for Declared<C> {
    type Target = C;

    fn deref(&self) -> &C {
        self.made.get_or_init(|| {
            // Names and labels are constants: that they are valid and distinct is proved by a test that uses them all.
            #[allow(clippy::expect_used)]
            let made = (self.make)(&self.metric).expect("a valid metric");
            #[allow(clippy::expect_used)]
            register(made.clone()).expect("a metric of a new name");
            made
        })
    }
}

/// Shows what `collector` says whenever Prometheus asks.
///
/// # Errors
/// If one of its metrics is shown already, or has no valid name.
pub fn register(collector: impl Collector + 'static) -> prometheus::Result<()> {
    REGISTRY.register(Box::new(collector))
}

/// All metrics in Prometheus' text format.
///
/// # Errors
/// If a metric cannot be encoded.
pub fn metrics_text() -> prometheus::Result<Vec<u8>> {
    let mut families = REGISTRY.gather();
    families.extend(prometheus::gather());
    let mut text = Vec::new();
    TextEncoder::new().encode(&families, &mut text)?;
    Ok(text)
}
