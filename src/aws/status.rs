//! CloudFormation's states, each of them by its whole name. (`ROLLBACK_COMPLETE` has the word COMPLETE in it and is none: whoever
//! looks for words is stuck there.)

use std::fmt;

/// A state that CloudFormation is not known to have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("CloudFormation tells a {of} that is not known: {text:?}")]
pub struct UnknownStatus {
    /// Of what.
    pub of: &'static str,
    /// What it told.
    pub text: String,
}

/// Declares an enum with AWS's words for its variants.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $of:literal, {$($(#[$line:meta])* $variant:ident = $word:literal,)*}) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$line])* $variant,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// AWS's word.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }

        impl std::str::FromStr for $name {
            type Err = UnknownStatus;

            fn from_str(text: &str) -> Result<Self, UnknownStatus> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    _ => Err(UnknownStatus { of: $of, text: text.to_owned() }),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}

words! {
    /// State of a stack.
    StackStatus, "status of a stack", {
        /// Its resources are being made.
        CreateInProgress = "CREATE_IN_PROGRESS",
        /// One could not be made; those that were are there.
        CreateFailed = "CREATE_FAILED",
        /// All were made.
        CreateComplete = "CREATE_COMPLETE",
        /// What was made is being removed, since one could not be.
        RollbackInProgress = "ROLLBACK_IN_PROGRESS",
        /// Some of it could not be removed.
        RollbackFailed = "ROLLBACK_FAILED",
        /// It was removed; what is left is a name that can only be deleted.
        RollbackComplete = "ROLLBACK_COMPLETE",
        /// It is being deleted.
        DeleteInProgress = "DELETE_IN_PROGRESS",
        /// Some of it could not be deleted.
        DeleteFailed = "DELETE_FAILED",
        /// It was deleted. It is told so for ninety days, to who asks by its id.
        DeleteComplete = "DELETE_COMPLETE",
        /// It is being changed.
        UpdateInProgress = "UPDATE_IN_PROGRESS",
        /// It was changed, and what was replaced is being removed.
        UpdateCompleteCleanupInProgress = "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS",
        /// It was changed.
        UpdateComplete = "UPDATE_COMPLETE",
        /// A change failed and was left as it was then.
        UpdateFailed = "UPDATE_FAILED",
        /// A change failed and is being undone.
        UpdateRollbackInProgress = "UPDATE_ROLLBACK_IN_PROGRESS",
        /// It could not be undone.
        UpdateRollbackFailed = "UPDATE_ROLLBACK_FAILED",
        /// It was undone, and what was made for it is being removed.
        UpdateRollbackCompleteCleanupInProgress = "UPDATE_ROLLBACK_COMPLETE_CLEANUP_IN_PROGRESS",
        /// A change failed and was undone.
        UpdateRollbackComplete = "UPDATE_ROLLBACK_COMPLETE",
        /// There is a change set, and nothing was made yet.
        ReviewInProgress = "REVIEW_IN_PROGRESS",
        /// Resources that were there are being taken over.
        ImportInProgress = "IMPORT_IN_PROGRESS",
        /// They were.
        ImportComplete = "IMPORT_COMPLETE",
        /// They could not be, and that is being undone.
        ImportRollbackInProgress = "IMPORT_ROLLBACK_IN_PROGRESS",
        /// It could not be undone.
        ImportRollbackFailed = "IMPORT_ROLLBACK_FAILED",
        /// It was undone.
        ImportRollbackComplete = "IMPORT_ROLLBACK_COMPLETE",
    }
}

words! {
    /// State of a change set.
    ChangeSetStatus, "status of a change set", {
        /// It will be made.
        CreatePending = "CREATE_PENDING",
        /// It is being made.
        CreateInProgress = "CREATE_IN_PROGRESS",
        /// It was made.
        CreateComplete = "CREATE_COMPLETE",
        /// It will be deleted.
        DeletePending = "DELETE_PENDING",
        /// It is being deleted.
        DeleteInProgress = "DELETE_IN_PROGRESS",
        /// It was deleted.
        DeleteComplete = "DELETE_COMPLETE",
        /// It could not be deleted.
        DeleteFailed = "DELETE_FAILED",
        /// It could not be made; also if there is nothing to change.
        Failed = "FAILED",
    }
}

words! {
    /// Whether a change set can be executed.
    Execution, "execution status of a change set", {
        /// Not now.
        Unavailable = "UNAVAILABLE",
        /// Yes.
        Available = "AVAILABLE",
        /// It is being executed.
        ExecuteInProgress = "EXECUTE_IN_PROGRESS",
        /// It was executed.
        ExecuteComplete = "EXECUTE_COMPLETE",
        /// Its execution could not begin.
        ExecuteFailed = "EXECUTE_FAILED",
        /// Its stack was changed since.
        Obsolete = "OBSOLETE",
    }
}

words! {
    /// State of a resource, or of a stack as its own events tell it.
    ResourceStatus, "status of a resource", {
        /// It is being made.
        CreateInProgress = "CREATE_IN_PROGRESS",
        /// It could not be made.
        CreateFailed = "CREATE_FAILED",
        /// It was made.
        CreateComplete = "CREATE_COMPLETE",
        /// It is being deleted.
        DeleteInProgress = "DELETE_IN_PROGRESS",
        /// It could not be deleted.
        DeleteFailed = "DELETE_FAILED",
        /// It was deleted.
        DeleteComplete = "DELETE_COMPLETE",
        /// It was left, as its template asks for.
        DeleteSkipped = "DELETE_SKIPPED",
        /// It is being changed.
        UpdateInProgress = "UPDATE_IN_PROGRESS",
        /// It could not be changed.
        UpdateFailed = "UPDATE_FAILED",
        /// It was changed.
        UpdateComplete = "UPDATE_COMPLETE",
        /// A change of the stack was made, and leftovers are being removed.
        UpdateCompleteCleanupInProgress = "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS",
        /// A failed change of the stack was undone, and leftovers are being removed.
        UpdateRollbackCompleteCleanupInProgress = "UPDATE_ROLLBACK_COMPLETE_CLEANUP_IN_PROGRESS",
        /// It is being taken over.
        ImportInProgress = "IMPORT_IN_PROGRESS",
        /// It could not be taken over.
        ImportFailed = "IMPORT_FAILED",
        /// It was taken over.
        ImportComplete = "IMPORT_COMPLETE",
        /// That is being undone.
        ImportRollbackInProgress = "IMPORT_ROLLBACK_IN_PROGRESS",
        /// That could not be undone.
        ImportRollbackFailed = "IMPORT_ROLLBACK_FAILED",
        /// That was undone.
        ImportRollbackComplete = "IMPORT_ROLLBACK_COMPLETE",
        /// It is being handed out.
        ExportInProgress = "EXPORT_IN_PROGRESS",
        /// It could not be handed out.
        ExportFailed = "EXPORT_FAILED",
        /// It was handed out.
        ExportComplete = "EXPORT_COMPLETE",
        /// That is being undone.
        ExportRollbackInProgress = "EXPORT_ROLLBACK_IN_PROGRESS",
        /// That could not be undone.
        ExportRollbackFailed = "EXPORT_ROLLBACK_FAILED",
        /// That was undone.
        ExportRollbackComplete = "EXPORT_ROLLBACK_COMPLETE",
        /// Its change is being undone.
        UpdateRollbackInProgress = "UPDATE_ROLLBACK_IN_PROGRESS",
        /// Its change could not be undone.
        UpdateRollbackFailed = "UPDATE_ROLLBACK_FAILED",
        /// Its change was undone.
        UpdateRollbackComplete = "UPDATE_ROLLBACK_COMPLETE",
        /// Its creation is being undone.
        RollbackInProgress = "ROLLBACK_IN_PROGRESS",
        /// Its creation could not be undone.
        RollbackFailed = "ROLLBACK_FAILED",
        /// Its creation was undone.
        RollbackComplete = "ROLLBACK_COMPLETE",
        /// There is a change set.
        ReviewInProgress = "REVIEW_IN_PROGRESS",
    }
}

/// What a state of a stack comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// CloudFormation is at work: nothing but looking on is of use.
    Busy,
    /// There is a change set and no resource yet.
    Review,
    /// It is as it was last asked to be.
    Settled,
    /// The last change failed, and it is as it was before.
    Undone,
    /// It never came to be, in part or as a whole.
    Stillborn,
    /// A failed change was left half-way, and can be undone.
    HalfWay,
    /// Undoing a failed change failed.
    Stuck,
    /// Some of it could not be deleted.
    Remains,
    /// There is nothing of it.
    Gone,
}

impl StackStatus {
    /// What it comes to.
    pub fn phase(self) -> Phase {
        match self {
            Self::CreateInProgress
            | Self::RollbackInProgress
            | Self::DeleteInProgress
            | Self::UpdateInProgress
            | Self::UpdateCompleteCleanupInProgress
            | Self::UpdateRollbackInProgress
            | Self::UpdateRollbackCompleteCleanupInProgress
            | Self::ImportInProgress
            | Self::ImportRollbackInProgress => Phase::Busy,
            Self::ReviewInProgress => Phase::Review,
            Self::CreateComplete | Self::UpdateComplete | Self::ImportComplete => Phase::Settled,
            Self::UpdateRollbackComplete | Self::ImportRollbackComplete => Phase::Undone,
            Self::CreateFailed | Self::RollbackFailed | Self::RollbackComplete => Phase::Stillborn,
            Self::UpdateFailed => Phase::HalfWay,
            Self::UpdateRollbackFailed | Self::ImportRollbackFailed => Phase::Stuck,
            Self::DeleteFailed => Phase::Remains,
            Self::DeleteComplete => Phase::Gone,
        }
    }
}

impl ResourceStatus {
    /// Whether something went wrong in it.
    pub fn is_failure(self) -> bool {
        matches!(
            self,
            Self::CreateFailed
                | Self::DeleteFailed
                | Self::UpdateFailed
                | Self::ImportFailed
                | Self::ExportFailed
                | Self::ImportRollbackFailed
                | Self::ExportRollbackFailed
                | Self::UpdateRollbackFailed
                | Self::RollbackFailed
        )
    }

    /// Whether something is being done to it.
    pub fn is_busy(self) -> bool {
        matches!(
            self,
            Self::CreateInProgress
                | Self::DeleteInProgress
                | Self::UpdateInProgress
                | Self::UpdateCompleteCleanupInProgress
                | Self::UpdateRollbackCompleteCleanupInProgress
                | Self::ImportInProgress
                | Self::ExportInProgress
                | Self::ImportRollbackInProgress
                | Self::ExportRollbackInProgress
                | Self::UpdateRollbackInProgress
                | Self::RollbackInProgress
                | Self::ReviewInProgress
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_known_by_their_whole_name() {
        assert_eq!(StackStatus::ALL.len(), 23, "CloudFormation has 23 states of stacks");
        for status in StackStatus::ALL {
            assert_eq!(status.word().parse(), Ok(*status));
        }
        for text in ["", "COMPLETE", "create_complete", "CREATE_COMPLETE ", "XCREATE_COMPLETE", "REBUILD_COMPLETE"] {
            let error = text.parse::<StackStatus>().unwrap_err();
            assert_eq!(error, UnknownStatus { of: "status of a stack", text: text.into() });
        }
    }

    #[test]
    fn every_word_of_a_stacks_own_events_is_known() {
        for status in StackStatus::ALL {
            assert!(status.word().parse::<ResourceStatus>().is_ok(), "{status}");
        }
    }

    #[test]
    fn no_state_is_busy_and_over() {
        for status in StackStatus::ALL {
            let busy = status.word().ends_with("_IN_PROGRESS") && *status != StackStatus::ReviewInProgress;
            assert_eq!(status.phase() == Phase::Busy, busy, "{status}");
        }
        for status in ResourceStatus::ALL {
            assert_eq!(status.is_busy(), status.word().ends_with("_IN_PROGRESS"), "{status}");
            assert_eq!(status.is_failure(), status.word().ends_with("_FAILED"), "{status}");
        }
    }
}
