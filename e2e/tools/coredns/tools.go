//go:build tools

// Package tools pins the command that the lab and the images build from this module.
package tools

import _ "github.com/coredns/coredns"
