//! Effects on the way to a guest's API from outside: an Ingress, a TLSRoute or a load balancer, and a host name that no other guest has.

use std::{net::IpAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{core::v1::Service, networking::v1::Ingress},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, ResourceExt as _};
use serde::de::DeserializeOwned;

use super::{
    claims::{self, Holder},
    exposure, guest_ingress,
    holdings::{Holdings, Taken, is_held_by},
    reconcile::{CLAIM_PAUSE, Error, NetworkOperator, in_use, pause},
    tls_route::{self, TLSRoute, Verdict},
};
use crate::{
    api::{Reason, names},
    cluster::{
        ClusterKey, Identity, Valid,
        valid::{Exposure, HostName},
    },
    runtime::{apply, cache, call, chain, queue::Outcome},
    settings::GatewaySettings,
};

/// Pause before a way that was refused is tried again: not all that it lacks is watched.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);

/// How people reach a guest's API.
pub(super) enum Outside {
    /// At this URL.
    At(String),
    /// Not before this is there, which comes by itself.
    Waits(String),
    /// Not before somebody has mended something.
    Closed {
        /// Of which sort.
        reason: Reason,
        /// What, and how.
        message: String,
        /// The URL, where that is the guest's nevertheless.
        endpoint: Option<String>,
        /// When it is looked again.
        outcome: Outcome,
    },
}

/// How the guest's ingress controller is reached.
pub(super) enum Way {
    /// At this address.
    At(String),
    /// Not before this is there, which comes by itself.
    Waits(String),
}

/// A way that the gateway, or who guards its routes, does not open. Nobody is led there until it does.
fn refused(message: String) -> Outside {
    Outside::Closed {
        reason: Reason::RouteNotAccepted,
        message,
        endpoint: None,
        outcome: Outcome::After(REFUSED_PAUSE),
    }
}

impl NetworkOperator {
    /// Opens the way that the Cluster asks for, and closes the others.
    pub(super) async fn expose(&self, key: &ClusterKey, valid: &Valid, address: IpAddr) -> Result<Outside, Error> {
        let identity = &valid.identity;
        let host = valid.exposure.host();
        if let Some(host) = host
            && let Some(taken) = self.take_name(identity, host).await?
        {
            return Ok(taken);
        }
        let endpoint = exposure::endpoint(&valid.exposure, address, &self.context.settings.exposure);
        let outside = match (&valid.exposure, endpoint) {
            (Exposure::Ingress { host, class }, Some(endpoint)) => {
                self.by_ingress(identity, host, class.as_deref(), endpoint).await?
            }
            (Exposure::TLSRoute { host, gateway: Some(gateway) }, Some(endpoint)) => {
                self.by_gateway(identity, host, gateway, endpoint).await?
            }
            (Exposure::TLSRoute { .. }, _) => {
                refused("no gateway is named in the operator's settings.exposure.gateway".into())
            }
            (_, Some(endpoint)) => Outside::At(endpoint),
            (_, None) => self.by_load_balancer(valid).await?,
        };
        // What worked is left until what comes after it does.
        if matches!(outside, Outside::At(_)) && self.close_others(identity, &valid.exposure).await? {
            self.let_names_go(key, identity, host).await?;
        }
        Ok(outside)
    }

    /// Takes the host name. Answers who has it instead.
    async fn take_name(&self, identity: &Identity, host: &HostName) -> Result<Option<Outside>, Error> {
        let taken = |message, pause| {
            let outcome = Outcome::After(pause);
            Ok(Some(Outside::Closed { reason: Reason::HostInUse, message, endpoint: None, outcome }))
        };
        let (holdings, ours) = (Holdings(&self.context), Holder::Cluster(identity.uid.clone()));
        let holder = holdings.holder(&claims::host_claim_name(host.as_str()), identity);
        if let Some(holder) = holder.filter(|holder| *holder != ours) {
            return taken(in_use(&format!("host {host}"), &holder), pause(&holder));
        }
        match holdings.take(identity, &claims::host_claim(identity, host.as_str())).await? {
            Taken::Ours => Ok(None),
            Taken::Others => taken(format!("host {host} was taken by another Cluster"), CLAIM_PAUSE),
        }
    }

    /// Gives former host names back: nothing leads there any more.
    async fn let_names_go(&self, key: &ClusterKey, identity: &Identity, kept: Option<&HostName>) -> Result<(), Error> {
        let (holdings, kept) = (Holdings(&self.context), kept.map(|host| claims::host_claim_name(host.as_str())));
        for claim in holdings.of(key) {
            let name = claim.name_any();
            if is_held_by(&claim, identity) && claims::vni_of(&name).is_none() && Some(&name) != kept.as_ref() {
                holdings.mark_released(&claim, Timestamp::now()).await?;
            }
        }
        Ok(())
    }

    async fn by_ingress(
        &self,
        identity: &Identity,
        host: &HostName,
        class: Option<&str>,
        endpoint: String,
    ) -> Result<Outside, Error> {
        let settings = &self.context.settings.exposure;
        let there = self.ingress(identity);
        let had = there.as_ref().and_then(|ingress| ingress.spec.as_ref()?.ingress_class_name.as_deref());
        let classes = self.context.cache.ingress_classes.state();
        let classes: Vec<_> = classes.iter().map(|class| &class.metadata).collect();
        match exposure::class(class, had, settings, &classes) {
            Ok(class) => {
                let ingress = exposure::ingress(identity, host, class, settings);
                let cached = there.as_ref().map(|ingress| ingress.metadata.clone());
                self.ensure(identity, &ingress, cached, &["/spec/rules"]).await.map_err(Error::Expose)?;
                Ok(Outside::At(endpoint))
            }
            Err(message) => Ok(Outside::Closed {
                reason: Reason::IngressClassNotFound,
                message,
                endpoint: Some(endpoint),
                outcome: Outcome::AwaitChange,
            }),
        }
    }

    async fn by_gateway(
        &self,
        identity: &Identity,
        host: &HostName,
        gateway: &GatewaySettings,
        endpoint: String,
    ) -> Result<Outside, Error> {
        let there = self.route(identity);
        let route = tls_route::route(identity, host, gateway);
        let cached = there.as_ref().map(|route| route.metadata.clone());
        let what = format!("Gateway {}/{}", gateway.namespace, gateway.name);
        let which = format!("TLSRoute {}/{}", identity.namespace, tls_route::ROUTE);
        match self.ensure(identity, &route, cached, &tls_route::EXACTLY).await {
            // Its kind may have gone, or somebody guards it: no guest goes without its nodes for that.
            Err(error) if error.is_refusal() => {
                return Ok(refused(format!("{which} cannot be made: {}", chain(&error))));
            }
            result => result.map_err(Error::Route)?,
        }
        // One that is going, or was another, was told something else.
        let stays = there.filter(|there| there.metadata.deletion_timestamp.is_none() && there.spec == route.spec);
        Ok(match stays.map_or(Verdict::Open, |route| tls_route::verdict(&route, gateway)) {
            Verdict::Taken => Outside::At(endpoint),
            Verdict::Open => {
                Outside::Waits(format!("{what} to take {which} (if this lasts: are it and its controller there?)"))
            }
            Verdict::Refused(why) => refused(format!(
                "{what} does not take {which}: {why} (it needs a listener of protocol TLS and mode Passthrough whose \
                 allowedRoutes take in namespaces with the label {})",
                names::CLUSTER_LABEL,
            )),
            Verdict::LeadsNowhere(why) => refused(format!("{what} takes {which}, which leads nowhere: {why}")),
        })
    }

    async fn by_load_balancer(&self, valid: &Valid) -> Result<Outside, Error> {
        let (identity, host) = (&valid.identity, valid.exposure.host());
        let wanted = exposure::balanced_service(valid, host, &self.context.settings.exposure);
        let service = self.balanced(identity);
        let cached = service.as_ref().map(|service| service.metadata.clone());
        self.ensure(identity, &wanted, cached, &exposure::BALANCED_EXACTLY).await.map_err(Error::Balance)?;
        // One that is going leads to nobody for much longer.
        let stays = service.as_ref().filter(|service| service.metadata.deletion_timestamp.is_none());
        let status = stays.and_then(|service| service.status.as_ref()?.load_balancer.as_ref());
        Ok(match exposure::balanced_endpoint(host, status) {
            Ok(Some(endpoint)) => Outside::At(endpoint),
            Ok(None) => Outside::Waits(format!(
                "the load balancer of Service {}/{} to have an address",
                identity.namespace,
                names::BALANCED_SERVICE
            )),
            Err(message) => {
                Outside::Closed { reason: Reason::InvalidSpec, message, endpoint: None, outcome: Outcome::AwaitChange }
            }
        })
    }

    /// Leads to the guest's own ingress controller, or no more. Answers where it is reached, if it is there.
    pub(super) async fn lead_to_ingress(&self, valid: &Valid) -> Result<Option<Way>, Error> {
        let identity = &valid.identity;
        let Some(controller) = &valid.ingress_controller else {
            self.close_ingress(identity).await?;
            return Ok(None);
        };
        let by_workers = self.context.vm_pods(identity).iter().any(|pod| pod.is_worker() && pod.is_ready());
        let wanted = guest_ingress::service(valid, controller, by_workers, &self.context.settings.exposure);
        let service = self.service(identity, names::INGRESS_SERVICE);
        let cached = service.as_ref().map(|service| service.metadata.clone());
        self.ensure(identity, &wanted, cached, &guest_ingress::EXACTLY).await.map_err(Error::Ingress)?;
        // One that is going leads to nobody for much longer.
        let stays = service.filter(|service| service.metadata.deletion_timestamp.is_none());
        let address = stays.and_then(|service| guest_ingress::address(controller, &service));
        Ok(Some(address.map_or_else(
            || Way::Waits(format!("Service {}/{} to have an address", identity.namespace, names::INGRESS_SERVICE)),
            Way::At,
        )))
    }

    /// Removes what leads to the guest's own ingress controller. Answers whether it is gone.
    pub(super) async fn close_ingress(&self, identity: &Identity) -> Result<bool, Error> {
        let service = self.service(identity, names::INGRESS_SERVICE).map(|service| service.metadata.clone());
        self.close::<Service>(identity, service).await
    }

    /// Removes what leads to the guest but for the way `kept`. Answers whether nothing of it is there any more.
    pub(super) async fn close_others(&self, identity: &Identity, kept: &Exposure) -> Result<bool, Error> {
        let mut closed = true;
        if !matches!(kept, Exposure::Ingress { .. }) {
            let ingress = self.ingress(identity).map(|ingress| ingress.metadata.clone());
            closed &= self.close::<Ingress>(identity, ingress).await?;
        }
        if !matches!(kept, Exposure::TLSRoute { .. }) {
            let route = self.route(identity).map(|route| route.metadata.clone());
            closed &= self.close::<TLSRoute>(identity, route).await?;
        }
        if !matches!(kept, Exposure::LoadBalancer { .. }) {
            let service = self.balanced(identity).map(|service| service.metadata.clone());
            closed &= self.close::<Service>(identity, service).await?;
        }
        Ok(closed)
    }

    /// Removes an object, if it is ours. Answers whether it is gone: a load balancer's provider may keep its Service until the
    /// load balancer is.
    async fn close<K>(&self, identity: &Identity, cached: Option<ObjectMeta>) -> Result<bool, Error>
    where
        K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let Some(meta) = cached.filter(|meta| identity.owner().owns(meta)) else { return Ok(true) };
        let api = Api::<K>::namespaced(self.context.client.clone(), &identity.namespace);
        if meta.deletion_timestamp.is_none() {
            apply::delete(&api, &meta, None).await.map_err(Error::Unexpose)?;
        }
        // The watch of a kind that is there no more tells of nothing.
        let name = meta.name.clone().unwrap_or_default();
        let what = format!("{} {}/{name}", K::kind(&()), identity.namespace);
        match call("get", what, api.get_metadata_opt(&name)).await {
            Ok(live) => Ok(live.is_none_or(|live| live.metadata.uid != meta.uid)),
            Err(error) if error.status() == Some(404) => Ok(true),
            Err(error) => Err(Error::Unexpose(error)),
        }
    }

    fn ingress(&self, identity: &Identity) -> Option<Arc<Ingress>> {
        cache::get(&self.context.cache.ingresses, Some(&identity.namespace), exposure::INGRESS)
    }

    fn route(&self, identity: &Identity) -> Option<Arc<TLSRoute>> {
        cache::get(&self.context.cache.tls_routes, Some(&identity.namespace), tls_route::ROUTE)
    }

    fn balanced(&self, identity: &Identity) -> Option<Arc<Service>> {
        self.service(identity, names::BALANCED_SERVICE)
    }

    fn service(&self, identity: &Identity, name: &str) -> Option<Arc<Service>> {
        cache::get(&self.context.cache.services, Some(&identity.namespace), name)
    }
}
