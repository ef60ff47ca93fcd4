// Package vmmtest is the contract of package vmm as tests: every driver runs it, with real
// guests.
//
//	func TestContract(t *testing.T) {
//		vmmtest.Run(t, func(t testing.TB) vmm.Driver { return newDriver(t) }, vmmtest.Build(t))
//	}
//
// Build makes the fixtures: Debian's cloud kernel, downloaded and unpacked but never installed,
// and an initramfs with the init of this folder, both kept in <repo>/.cache/vmmtest. The guest
// listens on a tap in a network namespace that each test makes for itself.
package vmmtest
