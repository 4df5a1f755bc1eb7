//go:build tools

// Package tools pins the command that images build from this module.
package tools

import _ "github.com/flannel-io/flannel"
