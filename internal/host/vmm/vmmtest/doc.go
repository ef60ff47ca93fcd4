// Package vmmtest is the contract of package vmm as tests: every driver runs it, with real
// guests.
//
//	func TestContract(t *testing.T) {
//		vmmtest.Run(t, func(t testing.TB) vmm.Driver { return newDriver(t) }, vmmtest.Build(t))
//	}
//
//	// The test binary starts itself once more as an agent that boots a VM and is killed.
//	func TestMain(m *testing.M) {
//		vmmtest.Main(m, func(ctx context.Context) (vmm.Driver, error) { return newDriver(ctx) })
//	}
//
// Build makes the fixtures: Debian's cloud kernel, downloaded and unpacked but never installed,
// and an initramfs with the init of this folder, both kept in <repo>/.cache/vmmtest. The guest
// listens on a tap in a network namespace that each test makes for itself.
package vmmtest
