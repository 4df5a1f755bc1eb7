//! Asking the supervisors of VM pods.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use http::Request;
use kube::{Client, Config};
use serde::de::DeserializeOwned;

use crate::{
    api::names,
    runtime::{
        CallError, call_within,
        link::{self, Server},
    },
};

/// A question to the supervisor of a VM pod.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Address of the VM pod.
    pub address: IpAddr,
    /// Path and query.
    pub path: &'a str,
    /// Bytes that the answer may have: a VM pod of somebody's image may say what it likes.
    pub answer: usize,
    /// How long it may take.
    pub timeout: Duration,
}

impl Question<'_> {
    /// Asks, and answers what was said.
    ///
    /// # Errors
    /// If there is no answer, or it is none of success.
    pub async fn text(self) -> Result<String, CallError> {
        let ask = async {
            let (client, request) = self.request()?;
            client.request_text(request).await
        };
        call_within(self.timeout, "get", self.what(), ask).await
    }

    /// The same, of JSON.
    ///
    /// # Errors
    /// Likewise, or if it is no such JSON.
    pub async fn json<T: DeserializeOwned>(self) -> Result<T, CallError> {
        let ask = async {
            let (client, request) = self.request()?;
            client.request::<T>(request).await
        };
        call_within(self.timeout, "get", self.what(), ask).await
    }

    fn request(self) -> Result<(Client, Request<Vec<u8>>), kube::Error> {
        let server = Server { name: "vm-pod", connecting: Duration::from_secs(3), answer: self.answer };
        let url = format!("http://{}", SocketAddr::from((self.address, names::SUPERVISOR_PORT)));
        let mut config = Config::new(url.parse().map_err(http::Error::from).map_err(kube::Error::HttpError)?);
        // It speaks no TLS: the system's authorities need not be read for it.
        config.root_cert = Some(Vec::new());
        let request = Request::get(self.path).body(Vec::new()).map_err(kube::Error::HttpError)?;
        Ok((link::connect_to(server, config, None)?, request))
    }

    /// For messages: without the query, which may be long.
    fn what(self) -> String {
        let path = self.path.split_once('?').map_or(self.path, |(path, _)| path);
        format!("{path} of {}", self.address)
    }
}
