//! EC2, as far as a control-plane node asks it: for the volume and the interface that outlive its instance.

use std::{net::Ipv4Addr, time::Duration};

use aws_smithy_xml::decode::{Document, ScopedDecoder, XmlDecodeError, try_data};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use k8s_openapi::jiff::Timestamp;
use kube::{Client, Config, client::Body};
use tracing::info;

use super::{
    config::Attached,
    sign::{self, Keys, SignError, Target},
};
use crate::runtime::{
    CallFailure, call_within,
    link::{self, Server},
};

/// Answers are about one object each.
const SERVER: Server = Server { name: "ec2", connecting: Duration::from_secs(5), answer: 1 << 20 };
/// Longest time of a call.
const LIMIT: Duration = Duration::from_secs(30);
/// Version of EC2's API.
const VERSION: &str = "2016-11-15";
/// Authorities of the world, where Debian has them: AWS's own is one.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// What a volume's disk is called in EC2; on the instance it has another name.
const DEVICE: &str = "/dev/sdf";

/// Why something was not attached.
#[derive(Debug, thiserror::Error)]
pub enum Ec2Error {
    /// No client can be made.
    #[error("set up a client of EC2 at {0}")]
    SetUp(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// Nothing was signed.
    #[error("{0}")]
    Sign(#[from] SignError),
    /// It did not answer.
    #[error("EC2: {action}")]
    Failed {
        /// What was asked for.
        action: &'static str,
        /// Why there is no answer.
        #[source]
        source: CallFailure,
    },
    /// It refuses.
    #[error("EC2 refuses {action}: {code}: {message}")]
    Refused {
        /// What was asked for.
        action: &'static str,
        /// AWS's word for why.
        code: String,
        /// AWS's words.
        message: String,
    },
    /// The answer is not what AWS's documentation says.
    #[error("EC2: the answer to {action} has no {lacks}")]
    Answer {
        /// What was asked for.
        action: &'static str,
        /// What is missing.
        lacks: &'static str,
    },
    /// There is not exactly one.
    #[error("EC2: {count} objects, not one, come of {action} for this node's tags")]
    NotOne {
        /// What was asked for.
        action: &'static str,
        /// How many there are.
        count: usize,
    },
    /// It is another's still.
    #[error("{id} is still attached to {instance}")]
    Taken {
        /// The volume or interface.
        id: String,
        /// The other instance.
        instance: String,
    },
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its id.
    pub id: String,
    /// Its Ethernet address.
    pub mac: String,
    /// Its address.
    pub address: Ipv4Addr,
}

/// A client of EC2 for one node.
pub struct Ec2<'a> {
    client: Client,
    at: &'a Attached,
    keys: &'a Keys,
}

impl<'a> Ec2<'a> {
    /// One that asks by these keys.
    ///
    /// # Errors
    /// If no client can be made.
    pub fn new(at: &'a Attached, keys: &'a Keys) -> Result<Self, Ec2Error> {
        let client = connect(&at.ec2).map_err(|source| Ec2Error::SetUp(at.ec2.clone(), source))?;
        Ok(Self { client, at, keys })
    }

    /// The node's volume, attached to this instance: its id.
    ///
    /// # Errors
    /// [`Ec2Error`]
    pub async fn volume(&self, instance: &str) -> Result<String, Ec2Error> {
        const FIND: &str = "DescribeVolumes";
        let found = self.one(FIND, "volumeSet").await?;
        let id = found.id.ok_or(Ec2Error::Answer { action: FIND, lacks: "id" })?;
        if has_to_attach(&id, instance, found.holder)? {
            let attach = [("VolumeId", id.as_str()), ("InstanceId", instance), ("Device", DEVICE)];
            self.ask("AttachVolume", &attach).await?;
            info!(volume = id, "attached");
        }
        Ok(id)
    }

    /// The node's lasting interface, attached to this instance.
    ///
    /// # Errors
    /// [`Ec2Error`]
    pub async fn interface(&self, instance: &str) -> Result<Interface, Ec2Error> {
        const FIND: &str = "DescribeNetworkInterfaces";
        let found = self.one(FIND, "networkInterfaceSet").await?;
        let lacks = |lacks| Ec2Error::Answer { action: FIND, lacks };
        let interface = Interface {
            id: found.id.ok_or_else(|| lacks("id"))?,
            mac: found.mac.ok_or_else(|| lacks("Ethernet address"))?,
            address: found.address.and_then(|text| text.parse().ok()).ok_or_else(|| lacks("address"))?,
        };
        if has_to_attach(&interface.id, instance, found.holder)? {
            let attach =
                [("NetworkInterfaceId", interface.id.as_str()), ("InstanceId", instance), ("DeviceIndex", "1")];
            self.ask("AttachNetworkInterface", &attach).await?;
            info!(interface = interface.id, "attached");
        }
        Ok(interface)
    }

    /// The one object that has the node's tags.
    async fn one(&self, action: &'static str, set: &'static str) -> Result<Found, Ec2Error> {
        let filters: Vec<_> = (1..)
            .zip(&self.at.tags)
            .flat_map(|(n, (tag, value))| {
                [(format!("Filter.{n}.Name"), format!("tag:{tag}")), (format!("Filter.{n}.Value.1"), value.clone())]
            })
            .collect();
        let filters: Vec<_> = filters.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let answer = self.ask(action, &filters).await?;
        let mut found = objects(&answer, set).map_err(|_| Ec2Error::Answer { action, lacks: "XML" })?;
        match (found.pop(), found.len()) {
            (Some(one), 0) => Ok(one),
            (None, _) => Err(Ec2Error::NotOne { action, count: 0 }),
            (Some(_), others) => Err(Ec2Error::NotOne { action, count: others + 1 }),
        }
    }

    async fn ask(&self, action: &'static str, parameters: &[(&str, &str)]) -> Result<Vec<u8>, Ec2Error> {
        let all = [("Action", action), ("Version", VERSION)];
        let body: Vec<_> =
            all.iter().chain(parameters).map(|(key, value)| format!("{}={}", encoded(key), encoded(value))).collect();
        let body = body.join("&");
        let target = Target { service: "ec2", region: &self.at.region, url: &self.at.ec2, body: &body };
        let headers = sign::request(self.keys, &target, &[("content-type", sign::FORM)], Timestamp::now())?;
        let mut request = Request::builder().method(Method::POST).uri("/");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let ask = async {
            let request = request.body(Body::from(body.into_bytes())).map_err(kube::Error::HttpError)?;
            let answer = self.client.send(request).await?;
            let status = answer.status();
            kube::Result::Ok((status, answer.into_body().collect().await?.to_bytes()))
        };
        let (status, bytes) = call_within(LIMIT, "ask", action, ask)
            .await
            .map_err(|error| Ec2Error::Failed { action, source: error.source })?;
        if status == StatusCode::OK {
            return Ok(bytes.to_vec());
        }
        let (code, message) = refusal(&bytes).unwrap_or_default();
        let code = code.unwrap_or_else(|| format!("HTTP {}", status.as_u16()));
        Err(Ec2Error::Refused { action, code, message: message.unwrap_or_default() })
    }
}

fn has_to_attach(id: &str, instance: &str, holder: Option<String>) -> Result<bool, Ec2Error> {
    match holder {
        None => Ok(true),
        Some(holder) if holder == instance => Ok(false),
        Some(holder) => Err(Ec2Error::Taken { id: id.to_owned(), instance: holder }),
    }
}

fn connect(url: &str) -> Result<Client, Box<dyn std::error::Error + Send + Sync>> {
    let mut config = Config::new(url.parse()?);
    if url.starts_with("https:") {
        let text = std::fs::read(AUTHORITIES)?;
        let all = x509_parser::pem::Pem::iter_from_buffer(&text).map(|pem| Ok(pem?.contents));
        config.root_cert = Some(all.collect::<Result<_, x509_parser::error::PEMError>>()?);
    }
    Ok(link::connect_to(SERVER, config, None)?)
}

/// As forms and signatures have it.
fn encoded(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    text.bytes().map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// A volume or an interface, as EC2 describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Found {
    id: Option<String>,
    mac: Option<String>,
    address: Option<String>,
    /// The instance that it is attached to, or being attached to.
    holder: Option<String>,
}

fn text(tag: &mut ScopedDecoder<'_, '_>) -> Result<Option<String>, XmlDecodeError> {
    Ok(Some(try_data(tag)?.into_owned()))
}

/// The objects of this set of an answer.
fn objects(bytes: &[u8], set: &str) -> Result<Vec<Found>, XmlDecodeError> {
    let mut found = Vec::new();
    let mut document = Document::try_from(bytes)?;
    let mut root = document.root_element()?;
    while let Some(mut tag) = root.next_tag() {
        while tag.start_el().matches(set)
            && let Some(mut item) = tag.next_tag()
        {
            found.push(object(&mut item)?);
        }
    }
    Ok(found)
}

fn object(item: &mut ScopedDecoder<'_, '_>) -> Result<Found, XmlDecodeError> {
    let mut found = Found::default();
    while let Some(mut tag) = item.next_tag() {
        match tag.start_el().local() {
            "volumeId" | "networkInterfaceId" => found.id = text(&mut tag)?,
            "macAddress" => found.mac = text(&mut tag)?,
            "privateIpAddress" => found.address = text(&mut tag)?,
            // Of an interface.
            "attachment" => found.holder = holder(&mut tag)?,
            // Of a volume, which has one at most.
            "attachmentSet" => {
                while let Some(mut attachment) = tag.next_tag() {
                    found.holder = holder(&mut attachment)?.or(found.holder);
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

fn holder(attachment: &mut ScopedDecoder<'_, '_>) -> Result<Option<String>, XmlDecodeError> {
    let (mut instance, mut is_over) = (None, false);
    while let Some(mut tag) = attachment.next_tag() {
        match tag.start_el().local() {
            "instanceId" => instance = text(&mut tag)?,
            "status" => is_over = text(&mut tag)?.as_deref() == Some("detached"),
            _ => {}
        }
    }
    Ok(instance.filter(|_| !is_over))
}

/// AWS's word for an error, and its words.
fn refusal(bytes: &[u8]) -> Result<(Option<String>, Option<String>), XmlDecodeError> {
    let (mut code, mut message) = (None, None);
    let mut document = Document::try_from(bytes)?;
    let mut root = document.root_element()?;
    while let Some(mut errors) = root.next_tag() {
        while errors.start_el().matches("Errors")
            && let Some(mut error) = errors.next_tag()
        {
            while let Some(mut tag) = error.next_tag() {
                match tag.start_el().local() {
                    "Code" => code = text(&mut tag)?,
                    "Message" => message = text(&mut tag)?,
                    _ => {}
                }
            }
        }
    }
    Ok((code, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ec2_says_is_understood() {
        let volumes = b"<DescribeVolumesResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>r</requestId><volumeSet><item><volumeId>vol-0a</volumeId><size>8</size><attachmentSet><item><volumeId>vol-0a</volumeId><instanceId>i-0b</instanceId><status>attached</status></item></attachmentSet><tagSet><item><key>a</key><value>b</value></item></tagSet></item><item><volumeId>vol-0c</volumeId><attachmentSet/></item></volumeSet></DescribeVolumesResponse>";
        let found = objects(volumes, "volumeSet").unwrap();
        assert_eq!((found[0].id.as_deref(), found[0].holder.as_deref()), (Some("vol-0a"), Some("i-0b")));
        assert_eq!((found[1].id.as_deref(), found[1].holder.as_deref(), found.len()), (Some("vol-0c"), None, 2));
        let interfaces = b"<DescribeNetworkInterfacesResponse><networkInterfaceSet><item><networkInterfaceId>eni-0a</networkInterfaceId><macAddress>0a:00</macAddress><privateIpAddress>10.1.0.9</privateIpAddress><attachment><instanceId>i-0b</instanceId><status>detached</status></attachment><privateIpAddressesSet><item><privateIpAddress>10.1.0.10</privateIpAddress></item></privateIpAddressesSet></item></networkInterfaceSet></DescribeNetworkInterfacesResponse>";
        let found = objects(interfaces, "networkInterfaceSet").unwrap();
        let wanted = Found {
            id: Some("eni-0a".into()),
            mac: Some("0a:00".into()),
            address: Some("10.1.0.9".into()),
            holder: None,
        };
        assert_eq!(found, [wanted]);
        let error = b"<Response><Errors><Error><Code>UnauthorizedOperation</Code><Message>no right</Message></Error></Errors></Response>";
        assert_eq!(refusal(error).unwrap(), (Some("UnauthorizedOperation".into()), Some("no right".into())));
        assert!(objects(b"<html", "volumeSet").is_err());
    }

    #[test]
    fn a_form_has_no_letter_that_means_something() {
        assert_eq!(encoded("tag:giantnetes.io/node=a b"), "tag%3Agiantnetes.io%2Fnode%3Da%20b");
    }
}
