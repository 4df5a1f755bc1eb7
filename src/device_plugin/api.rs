//! kubelet's device-plugin API, `v1beta1`: messages written after its `api.proto`, services written by `build.rs`.
//!
//! Fields that we neither send nor read are left out; protocol buffers skip what is not known.

/// The version of the API that plugins name.
pub const VERSION: &str = "v1beta1";
/// Where plugins and kubelet have their sockets.
pub const FOLDER: &str = "/var/lib/kubelet/device-plugins";
/// kubelet's own socket in it.
pub const KUBELET_SOCKET: &str = "kubelet.sock";
/// Health of a device that may be given to a pod.
pub const HEALTHY: &str = "Healthy";
/// Health of one that may not.
pub const UNHEALTHY: &str = "Unhealthy";

/// What a call that needs nothing takes, or one that has nothing to say answers.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Empty {}

/// What else of the API a plugin wants to be asked.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct DevicePluginOptions {
    /// Whether `PreStartContainer` is called before each container's start.
    #[prost(bool, tag = "1")]
    pub pre_start_required: bool,
    /// Whether `GetPreferredAllocation` may be called.
    #[prost(bool, tag = "2")]
    pub get_preferred_allocation_available: bool,
}

/// A plugin says to kubelet that it is there.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RegisterRequest {
    /// [`VERSION`]
    #[prost(string, tag = "1")]
    pub version: String,
    /// File name of the plugin's socket in [`FOLDER`].
    #[prost(string, tag = "2")]
    pub endpoint: String,
    /// The extended resource that it offers.
    #[prost(string, tag = "3")]
    pub resource_name: String,
    /// What else it wants to be asked.
    #[prost(message, optional, tag = "4")]
    pub options: Option<DevicePluginOptions>,
}

/// All devices as they are now.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListAndWatchResponse {
    /// The devices.
    #[prost(message, repeated, tag = "1")]
    pub devices: Vec<Device>,
}

/// A device.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Device {
    /// Its id, of at most 63 characters.
    #[prost(string, tag = "1")]
    pub id: String,
    /// [`HEALTHY`] or [`UNHEALTHY`].
    #[prost(string, tag = "2")]
    pub health: String,
}

/// The containers of a pod that get devices.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AllocateRequest {
    /// One for each container.
    #[prost(message, repeated, tag = "1")]
    pub container_requests: Vec<ContainerAllocateRequest>,
}

/// What one container gets.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerAllocateRequest {
    /// Ids of devices.
    #[prost(string, repeated, tag = "1")]
    pub devices_ids: Vec<String>,
}

/// How the containers come by their devices.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AllocateResponse {
    /// One for each container, in the order of the request.
    #[prost(message, repeated, tag = "1")]
    pub container_responses: Vec<ContainerAllocateResponse>,
}

/// How one container comes by its devices.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerAllocateResponse {
    /// Device files.
    #[prost(message, repeated, tag = "3")]
    pub devices: Vec<DeviceSpec>,
}

/// A device file of the host in a container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeviceSpec {
    /// Where it is in the container.
    #[prost(string, tag = "1")]
    pub container_path: String,
    /// Where it is on the host.
    #[prost(string, tag = "2")]
    pub host_path: String,
    /// What the device cgroup permits: of `r`, `w` and `m` (make such files).
    #[prost(string, tag = "3")]
    pub permissions: String,
}

/// Which devices would suit best: we never ask to be asked.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct PreferredAllocationRequest {}

/// The answer to it: any.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct PreferredAllocationResponse {}

/// A container is going to start: we never ask to be told.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct PreStartContainerRequest {}

/// The answer to it.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct PreStartContainerResponse {}

/// The service of kubelet: its client is ours, its server the tests'.
#[allow(missing_docs, clippy::pedantic, clippy::all)]
mod registration {
    include!(concat!(env!("OUT_DIR"), "/v1beta1.Registration.rs"));
}

/// The service of a plugin: its server is ours, its client the tests'.
#[allow(missing_docs, clippy::pedantic, clippy::all)]
mod plugin {
    include!(concat!(env!("OUT_DIR"), "/v1beta1.DevicePlugin.rs"));
}

pub use plugin::{device_plugin_client, device_plugin_server};
pub use registration::{registration_client, registration_server};
