//! Gauges that are looked up when Prometheus asks: what was last counted would be wrong when nothing counts any more.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use prometheus::{
    core::{Collector, Desc},
    proto::MetricFamily,
};

use super::metric::Metric;

type Look = Box<dyn Fn() -> f64 + Send>;

/// Gauges by one label, each with a way to look it up. Clones share them.
#[derive(Clone)]
pub struct Pulled {
    metric: Metric,
    desc: Desc,
    looks: Arc<Mutex<BTreeMap<&'static str, Look>>>,
}

impl fmt::Debug for Pulled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pulled").field("metric", &self.metric).finish_non_exhaustive()
    }
}

impl Pulled {
    /// None yet.
    pub(super) fn new(metric: &Metric) -> prometheus::Result<Self> {
        Ok(Self { metric: *metric, desc: metric.desc()?, looks: Arc::default() })
    }

    /// From now on the gauge of this name is looked up so.
    pub fn follow(&self, name: &'static str, look: impl Fn() -> f64 + Send + 'static) {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner).insert(name, Box::new(look));
    }
}

impl Collector for Pulled {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        vec![self.metric.family(looks.iter().map(|(name, look)| (vec![(*name).to_owned()], look())))]
    }
}

/// Seconds since each of some things was last heard. Clones share them.
#[derive(Clone, Debug)]
pub struct Ages {
    metric: Metric,
    desc: Desc,
    heard: Arc<Mutex<BTreeMap<&'static str, Instant>>>,
}

impl Ages {
    /// None yet.
    pub(super) fn new(metric: &Metric) -> prometheus::Result<Self> {
        Ok(Self { metric: *metric, desc: metric.desc()?, heard: Arc::default() })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Instant>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of something that is heard from now on; it counts as heard now.
    pub fn begin(&self, name: &'static str) {
        self.lock().insert(name, Instant::now());
    }

    /// It was heard. What never began has no age: names come from requests, too.
    pub fn hear(&self, name: &str) {
        if let Some(at) = self.lock().get_mut(name) {
            *at = Instant::now();
        }
    }
}

impl Collector for Ages {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let heard = self.lock();
        let ages = heard.iter().map(|(name, at)| (vec![(*name).to_owned()], at.elapsed().as_secs_f64()));
        vec![self.metric.family(ages)]
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU32, Ordering},
        time::Duration,
    };

    use super::*;
    use crate::runtime::telemetry::metric::Kind;

    const METRIC: Metric = Metric { name: "x", kind: Kind::Gauge, labels: &[("of", "anything")], help: "x" };

    fn values(collector: &impl Collector) -> Vec<(String, f64)> {
        let families = collector.collect();
        let series = families[0].get_metric().iter();
        series.map(|one| (one.get_label()[0].value().to_owned(), one.get_gauge().get_value())).collect()
    }

    #[test]
    fn a_gauge_is_as_it_is_when_it_is_asked_for() {
        let (pulled, depth) = (Pulled::new(&METRIC).unwrap(), Arc::new(AtomicU32::new(1)));
        let look = depth.clone();
        pulled.follow("a", move || f64::from(look.load(Ordering::SeqCst)));
        assert_eq!(values(&pulled), [("a".to_owned(), 1.0)]);
        depth.store(7, Ordering::SeqCst);
        assert_eq!(values(&pulled), [("a".to_owned(), 7.0)]);
        pulled.follow("a", || 2.0);
        assert_eq!(values(&pulled), [("a".to_owned(), 2.0)]);
    }

    #[test]
    fn an_age_grows_until_it_is_heard_and_strangers_have_none() {
        let ages = Ages::new(&METRIC).unwrap();
        ages.begin("a");
        std::thread::sleep(Duration::from_millis(30));
        assert!(values(&ages)[0].1 >= 0.03);
        ages.hear("b");
        ages.hear("a");
        let after = values(&ages);
        assert!(after.len() == 1 && after[0].1 < 0.03, "{after:?}");
    }
}
