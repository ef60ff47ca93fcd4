// Package sandboxtest is a host for tests of what stands above the runtime: a real network in a
// namespace of its own, a real image store with a template of a few bytes, and a runtime whose
// VMs are a goroutine each. A VM's guest answers the real protocol behind the real tap of its
// slot, a VM that is killed says no goodbye, and VMs outlive whoever started them, as real ones
// outlive the agent. Faults are put in by name (Runtime.On). Real VMs are met in test/e2e.
package sandboxtest
