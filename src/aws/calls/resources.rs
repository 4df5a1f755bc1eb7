//! What the guest itself made in its network, and what a region offers: calls of EC2 and of load balancers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    caller::{Caller, Operation},
    failure::{AwsError, Failure},
    identity::Keyring,
    pace::Family,
    query::{Query, Service},
    xml::Element,
};
use crate::api::names;

const EC2: Service = Service { name: "ec2", version: "2016-11-15" };
const BALANCERS: Service = Service { name: "elasticloadbalancing", version: "2015-12-01" };
/// Those of before, which Kubernetes' cloud controller still makes unless it is asked for others.
const CLASSIC: Service = Service { name: "elasticloadbalancing", version: "2012-06-01" };

/// Most pages of an answer.
const MAX_PAGES: usize = 50;
/// Load balancers whose tags are asked for at once (its limit).
const TAGS_AT_ONCE: usize = 20;

macro_rules! operations {
    ($($constant:ident = $service:literal, $name:literal, $writes:literal;)*) => {
        $(static $constant: Operation = Operation {
            service: $service,
            name: $name,
            action: concat!($service, ":", $name),
            family: Family::Resource,
            writes: $writes,
        };)*
    };
}

operations! {
    OFFERINGS = "ec2", "DescribeInstanceTypeOfferings", false;
    VOLUMES = "ec2", "DescribeVolumes", false;
    DELETE_VOLUME = "ec2", "DeleteVolume", true;
    DESCRIBE_BALANCERS = "elasticloadbalancing", "DescribeLoadBalancers", false;
    TAGS_OF_BALANCERS = "elasticloadbalancing", "DescribeTags", false;
    DELETE_BALANCER = "elasticloadbalancing", "DeleteLoadBalancer", true;
}

/// Something that the guest made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Its id: of a volume, or the ARN or name of a load balancer.
    pub id: String,
    /// What it is.
    pub kind: Kind,
    /// Whether somebody uses it, so that it cannot be deleted yet.
    pub in_use: bool,
}

/// What the guest made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A volume.
    Volume,
    /// A load balancer.
    Balancer,
    /// A classic load balancer.
    ClassicBalancer,
}

impl std::fmt::Display for Made {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.kind == Kind::Volume { "volume" } else { "load balancer" };
        let use_ = if self.in_use { " (in use)" } else { "" };
        write!(f, "{kind} {}{use_}", self.id)
    }
}

/// Calls about what is in a guest's account beside its stacks.
#[derive(Debug)]
pub struct Resources {
    query: Query,
}

impl Resources {
    pub(in crate::aws) fn new((region, endpoint): (&str, Option<&String>), keys: Arc<Keyring>, caller: Caller) -> Self {
        Self { query: Query::new(region.to_owned(), endpoint.cloned(), keys, caller) }
    }

    /// Which of these instance types there are in each of these zones.
    ///
    /// # Errors
    /// If that cannot be told.
    pub async fn offerings(&self, types: &[String], zones: &[String]) -> Result<BTreeSet<(String, String)>, AwsError> {
        let mut parameters = vec![("LocationType".to_owned(), "availability-zone".to_owned())];
        parameters.extend(filter(1, "instance-type", types));
        parameters.extend(filter(2, "location", zones));
        let mut found = BTreeSet::new();
        for page in self.pages((&OFFERINGS, EC2), &parameters, ["NextToken", "nextToken"]).await? {
            let items = page.list("instanceTypeOfferingSet").iter();
            found.extend(items.map(|item| (item.of("instanceType").to_owned(), item.of("location").to_owned())));
        }
        Ok(found)
    }

    /// Volumes that the guest's CSI driver made.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub async fn volumes(&self, kubernetes_tag: &str) -> Result<Vec<Made>, AwsError> {
        let parameters = filter(1, "tag-key", &[kubernetes_tag.to_owned()]);
        let pages = self.pages((&VOLUMES, EC2), &parameters, ["NextToken", "nextToken"]).await?;
        let items = pages.iter().flat_map(|page| page.list("volumeSet"));
        let made = items.filter(|item| is_guests(&tags(item.list("tagSet"), ["key", "value"]), kubernetes_tag));
        Ok(made
            .map(|item| Made {
                id: item.of("volumeId").to_owned(),
                kind: Kind::Volume,
                in_use: item.of("status") == "in-use",
            })
            .collect())
    }

    /// Load balancers that the guest's cloud controller made in its network.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub async fn balancers(&self, vpc: &str, kubernetes_tag: &str) -> Result<Vec<Made>, AwsError> {
        let mut found = Vec::new();
        for (service, list, network, id, kind) in [
            (BALANCERS, "LoadBalancers", "VpcId", "LoadBalancerArn", Kind::Balancer),
            (CLASSIC, "LoadBalancerDescriptions", "VPCId", "LoadBalancerName", Kind::ClassicBalancer),
        ] {
            let pages = self.pages((&DESCRIBE_BALANCERS, service), &[], ["Marker", "NextMarker"]).await?;
            let items = pages.iter().flat_map(|page| page.list(list)).filter(|item| item.of(network) == vpc);
            let ids: Vec<String> = items.map(|item| item.of(id).to_owned()).collect();
            for some in ids.chunks(TAGS_AT_ONCE) {
                let word = if kind == Kind::Balancer { "ResourceArns" } else { "LoadBalancerNames" };
                let named: Vec<_> = members(word, some);
                let answer = self.query.call((&TAGS_OF_BALANCERS, service), vpc, &named).await?;
                for described in answer.list("TagDescriptions") {
                    let own = if kind == Kind::Balancer { "ResourceArn" } else { "LoadBalancerName" };
                    if is_guests(&tags(described.list("Tags"), ["Key", "Value"]), kubernetes_tag) {
                        found.push(Made { id: described.of(own).to_owned(), kind, in_use: false });
                    }
                }
            }
        }
        Ok(found)
    }

    /// Deletes something. It is done, if it is not there.
    ///
    /// # Errors
    /// If AWS refuses.
    pub async fn delete(&self, made: &Made) -> Result<(), AwsError> {
        let (call, key) = match made.kind {
            Kind::Volume => ((&DELETE_VOLUME, EC2), "VolumeId"),
            Kind::Balancer => ((&DELETE_BALANCER, BALANCERS), "LoadBalancerArn"),
            Kind::ClassicBalancer => ((&DELETE_BALANCER, CLASSIC), "LoadBalancerName"),
        };
        match self.query.call(call, &made.id, &[(key.to_owned(), made.id.clone())]).await {
            Ok(_) | Err(AwsError { source: Failure::NotFound(_), .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// All pages of an answer, by the names of what asks for the next and what tells it.
    async fn pages(
        &self,
        call: (&'static Operation, Service),
        parameters: &[(String, String)],
        [ask, told]: [&str; 2],
    ) -> Result<Vec<Element>, AwsError> {
        let (mut pages, mut next) = (Vec::new(), None::<String>);
        for _ in 0..MAX_PAGES {
            let more = next.take().map(|next| (ask.to_owned(), next));
            let all: Vec<_> = parameters.iter().cloned().chain(more).collect();
            let page = self.query.call(call, "", &all).await?;
            next = page.first(told).map(|it| it.text.trim().to_owned()).filter(|token| !token.is_empty());
            pages.push(page);
            if next.is_none() {
                return Ok(pages);
            }
        }
        Err(AwsError { action: call.0.action, object: String::new(), source: Failure::Answer("end") })
    }
}

/// A filter of EC2's.
fn filter(number: usize, name: &str, values: &[String]) -> Vec<(String, String)> {
    let head = (format!("Filter.{number}.Name"), name.to_owned());
    let value = |(place, value): (usize, &String)| (format!("Filter.{number}.Value.{}", place + 1), value.clone());
    std::iter::once(head).chain(values.iter().enumerate().map(value)).collect()
}

/// A list as services other than EC2 take it.
fn members(name: &str, values: &[String]) -> Vec<(String, String)> {
    let member = |(place, value): (usize, &String)| (format!("{name}.member.{}", place + 1), value.clone());
    values.iter().enumerate().map(member).collect()
}

fn tags(items: &[Element], [key, value]: [&str; 2]) -> BTreeMap<String, String> {
    items.iter().map(|item| (item.of(key).to_owned(), item.of(value).to_owned())).collect()
}

/// Whether something is the guest's own: its stacks' have its tag, too, and ours.
fn is_guests(tags: &BTreeMap<String, String>, kubernetes_tag: &str) -> bool {
    tags.get(kubernetes_tag).is_some_and(|how| how == "owned")
        && tags.get(names::MANAGED_BY_LABEL).is_none_or(|by| by != names::MANAGER)
}
