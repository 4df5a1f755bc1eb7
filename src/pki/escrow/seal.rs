//! Sealing by age (<https://age-encryption.org/v1>): for X25519 recipients, as armored text.

use std::io::{Read as _, Write as _};

use age::{
    Decryptor, EncryptError, Encryptor,
    armor::{ArmoredReader, ArmoredWriter, Format},
    x25519::{Identity, Recipient},
};
use secrecy::{ExposeSecret as _, SecretString};

/// Recipients that are named in an event: its note has room for these.
pub const MOST_RECIPIENTS: usize = 10;

/// Why a bundle could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// A text is no recipient.
    #[error("recipient {0:?} is none: age's begin with age1, as `age-keygen` prints them")]
    Recipient(String),
    /// None, or more than an event could name.
    #[error("{0} recipients were named; one to {MOST_RECIPIENTS} can be")]
    Recipients(usize),
    /// age refuses.
    #[error("seal the bundle")]
    Seal(#[source] EncryptError),
    /// Its text could not be made.
    #[error("seal the bundle")]
    Write(#[source] std::io::Error),
    /// A line is no identity. It is not shown: it might be one that was mistyped.
    #[error("line {0} of the identities is none: age's begin with AGE-SECRET-KEY-1, as `age-keygen` writes them")]
    Identity(usize),
    /// There are none.
    #[error("there is no identity among the identities")]
    NoIdentity,
    /// It is for others.
    #[error("none of the identities opens it: it was sealed for other recipients")]
    NotForUs,
    /// It is not whole.
    #[error("it is damaged, cut off, or was not sealed by age")]
    Damaged,
}

/// Reads recipients.
///
/// # Errors
/// [`SealError::Recipient`], [`SealError::Recipients`]
pub fn recipients(texts: &[String]) -> Result<Vec<Recipient>, SealError> {
    if texts.is_empty() || texts.len() > MOST_RECIPIENTS {
        return Err(SealError::Recipients(texts.len()));
    }
    // A secret key that was pasted by mistake is not repeated.
    let shown = |text: &str| if text.starts_with("age1") { text.to_owned() } else { "…".to_owned() };
    texts.iter().map(|text| text.parse().map_err(|_| SealError::Recipient(shown(text)))).collect()
}

/// Reads a file of identities as `age-keygen` writes it: one on each line, beside comments.
///
/// # Errors
/// [`SealError::Identity`], [`SealError::NoIdentity`]
pub fn identities(text: &SecretString) -> Result<Vec<Identity>, SealError> {
    let lines = text.expose_secret().lines().map(str::trim).enumerate();
    let said = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let all = said.map(|(number, line)| line.parse().map_err(|_| SealError::Identity(number + 1)));
    let all: Vec<_> = all.collect::<Result<_, _>>()?;
    if all.is_empty() { Err(SealError::NoIdentity) } else { Ok(all) }
}

/// Seals a text for these recipients.
///
/// # Errors
/// [`SealError::Recipients`], [`SealError::Seal`], [`SealError::Write`]
pub fn seal(text: &SecretString, recipients: &[Recipient]) -> Result<String, SealError> {
    let all = recipients.iter().map(|recipient| recipient as &dyn age::Recipient);
    let encryptor = Encryptor::with_recipients(all).map_err(SealError::Seal)?;
    let mut sealed = Vec::new();
    let write = || {
        let armored = ArmoredWriter::wrap_output(&mut sealed, Format::AsciiArmor)?;
        let mut writer = encryptor.wrap_output(armored)?;
        writer.write_all(text.expose_secret().as_bytes())?;
        writer.finish()?.finish()
    };
    write().map_err(SealError::Write)?;
    String::from_utf8(sealed).map_err(|_| SealError::Damaged)
}

/// Opens what was sealed, armored or not.
///
/// # Errors
/// [`SealError::NotForUs`], [`SealError::Damaged`]
pub fn open(sealed: &[u8], identities: &[Identity]) -> Result<SecretString, SealError> {
    let decryptor = Decryptor::new_buffered(ArmoredReader::new(sealed)).map_err(|_| SealError::Damaged)?;
    let all = identities.iter().map(|identity| identity as &dyn age::Identity);
    let mut reader = decryptor.decrypt(all).map_err(|error| match error {
        age::DecryptError::NoMatchingKeys => SealError::NotForUs,
        _ => SealError::Damaged,
    })?;
    let mut text = String::new();
    // What was read before something was found to be wrong is not to be used.
    match reader.read_to_string(&mut text) {
        Ok(_) => Ok(text.into()),
        Err(_) => {
            drop(SecretString::from(text));
            Err(SealError::Damaged)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed_for(identities: &[&Identity]) -> String {
        let all: Vec<_> = identities.iter().map(|identity| identity.to_public()).collect();
        seal(&"the keys".repeat(20_000).into(), &all).unwrap()
    }

    #[test]
    fn each_recipient_opens_it_and_nobody_else() {
        let [one, two, other] = [Identity::generate(), Identity::generate(), Identity::generate()];
        let sealed = sealed_for(&[&one, &two]);
        assert!(sealed.starts_with("-----BEGIN AGE ENCRYPTED FILE-----") && !sealed.contains("the keys"));
        for opens in [&one, &two] {
            let opened = open(sealed.as_bytes(), &[other.clone(), opens.clone()]).unwrap();
            assert_eq!(opened.expose_secret(), "the keys".repeat(20_000));
        }
        assert!(matches!(open(sealed.as_bytes(), &[other]), Err(SealError::NotForUs)));
    }

    #[test]
    fn what_is_not_whole_is_not_opened() {
        let identity = Identity::generate();
        let sealed = sealed_for(&[&identity]);
        let open = |bytes: &[u8]| open(bytes, std::slice::from_ref(&identity)).map(|_| ());
        assert!(open(sealed.as_bytes()).is_ok());
        for length in [0, 10, 200, sealed.len() / 2, sealed.len() - 80] {
            assert!(matches!(open(&sealed.as_bytes()[..length]), Err(SealError::Damaged)), "{length}");
        }
        let mut changed = sealed.clone().into_bytes();
        let middle = changed.len() / 2;
        changed[middle] = if changed[middle] == b'A' { b'B' } else { b'A' };
        assert!(matches!(open(&changed), Err(SealError::Damaged)));
    }

    #[test]
    fn recipients_and_identities_are_read_as_age_writes_them_and_no_secret_is_repeated() {
        let identity = Identity::generate();
        let secret = identity.to_string();
        let file = format!("# created: today\n# public key: {}\n{}\n", identity.to_public(), secret.expose_secret());
        let read = identities(&file.clone().into()).unwrap();
        assert_eq!(read[0].to_public().to_string(), identity.to_public().to_string());
        let torn = file[..file.len() - 5].to_owned();
        assert!(matches!(identities(&torn.into()), Err(SealError::Identity(3))));
        assert!(matches!(identities(&"# nothing\n".to_owned().into()), Err(SealError::NoIdentity)));
        let named = |texts: &[String]| recipients(texts).map(|all| all.len()).map_err(|error| error.to_string());
        let public = identity.to_public().to_string();
        assert_eq!(named(std::slice::from_ref(&public)), Ok(1));
        assert!(named(&vec![public.clone(); MOST_RECIPIENTS + 1]).is_err() && named(&[]).is_err());
        assert!(named(&["age1x".into()]).unwrap_err().contains("age1x"));
        assert!(!named(&[secret.expose_secret().to_owned()]).unwrap_err().contains(secret.expose_secret()));
    }
}
