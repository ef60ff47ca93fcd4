// Package vm is the in-VM lane.
package vm
