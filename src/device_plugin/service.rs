//! What kubelet is answered.

use std::pin::Pin;

use futures::{Stream, StreamExt as _, stream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{
    api::{
        AllocateRequest, AllocateResponse, ContainerAllocateResponse, Device, DevicePluginOptions, DeviceSpec, Empty,
        HEALTHY, ListAndWatchResponse, PreStartContainerRequest, PreStartContainerResponse, PreferredAllocationRequest,
        PreferredAllocationResponse, UNHEALTHY, device_plugin_server::DevicePlugin,
    },
    probing::Verdict,
};
use crate::supervisor::paths::KVM;

/// The plugin as kubelet sees it.
#[derive(Clone, Debug)]
pub struct Service {
    /// How many devices there are. The device file is one, and any number of machines may have it open.
    pub devices: u16,
    /// Whether they are healthy.
    pub verdict: watch::Receiver<Verdict>,
    /// Ends what would never end by itself.
    pub end: CancellationToken,
}

fn devices(number: u16, verdict: &Verdict) -> ListAndWatchResponse {
    let health = if *verdict == Verdict::Works { HEALTHY } else { UNHEALTHY };
    let device = |index| Device { id: format!("kvm-{index}"), health: health.to_owned() };
    ListAndWatchResponse { devices: (0..number).map(device).collect() }
}

/// Every list of devices, now and whenever the verdict is another one.
fn lists(
    number: u16,
    mut verdict: watch::Receiver<Verdict>,
) -> impl Stream<Item = Result<ListAndWatchResponse, Status>> {
    verdict.mark_changed();
    stream::unfold(verdict, move |mut verdict| async move {
        // Nobody probes any more when the process ends.
        verdict.changed().await.ok()?;
        let list = devices(number, &verdict.borrow_and_update());
        Some((Ok(list), verdict))
    })
}

#[tonic::async_trait]
impl DevicePlugin for Service {
    type ListAndWatchStream = Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn get_device_plugin_options(&self, _: Request<Empty>) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions::default()))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let lists = lists(self.devices, self.verdict.clone()).take_until(self.end.clone().cancelled_owned());
        Ok(Response::new(lists.boxed()))
    }

    async fn allocate(&self, request: Request<AllocateRequest>) -> Result<Response<AllocateResponse>, Status> {
        if let Verdict::Broken(why) = &*self.verdict.borrow() {
            return Err(Status::unavailable(format!("no guest starts on KVM here: {why}")));
        }
        let device = || DeviceSpec { container_path: KVM.into(), host_path: KVM.into(), permissions: "rw".into() };
        let containers = request.into_inner().container_requests;
        let answers = containers.iter().map(|_| ContainerAllocateResponse { devices: vec![device()] });
        Ok(Response::new(AllocateResponse { container_responses: answers.collect() }))
    }

    async fn get_preferred_allocation(
        &self,
        _: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        Err(Status::unimplemented("one device is like another"))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Err(Status::unimplemented("nothing is to be done before a start"))
    }
}
