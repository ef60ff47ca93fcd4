package vmmtest

import (
	"os"
	"testing"

	"github.com/roosthq/roost/internal/host/vmm"
)

// suite is the contract against one driver.
type suite struct {
	newDriver func(t testing.TB) vmm.Driver
	caps      vmm.Capabilities
	fixtures  Fixtures
	slots     chan struct{}
}

func newSuite(t testing.TB, newDriver func(t testing.TB) vmm.Driver, fixtures Fixtures) *suite {
	t.Helper()
	return &suite{
		newDriver: newDriver, caps: newDriver(t).Capabilities(), fixtures: fixtures,
		slots: make(chan struct{}, parallelVMs),
	}
}

// parallelVMs bounds how many tests hold VMs at once; a machine with two cores translates no
// more than that at a useful speed.
const parallelVMs = 2

// Run runs the contract.
func Run(t *testing.T, newDriver func(t testing.TB) vmm.Driver, fixtures Fixtures) {
	if os.Geteuid() != 0 {
		t.Fatal("the vmm contract needs root: namespaces, taps and uids")
	}
	s := newSuite(t, newDriver, fixtures)
	tests := map[string]func(*testing.T){
		"Boot":             s.testBoot,
		"ConsoleIsBounded": s.testConsole,
		"PauseResume":      s.testPauseResume,
		"RestoreTwice":     s.testRestoreTwice,
		"RestorePrepare":   s.testPrepare,
		"RestoreFailure":   s.testRestoreFailure,
		"Dirty":            s.testDirty,
		"DiskPersists":     s.testDiskPersists,
		"DiskGrows":        s.testDiskGrows,
		"SwitchUnderWrite": s.testSwitch,
		"SwitchPaused":     s.testSwitchPaused,
		"SwitchRefused":    s.testSwitchRefused,
		"Kill":             s.testKill,
		"ExitFromOutside":  s.testExit,
		"Stopped":          s.testStopped,
		"GuestEnds":        s.testGuestEnds,
		"Detach":           s.testDetach,
		"AgentDies":        s.testAgentDies,
		"AdoptRefused":     s.testAdoptRefused,
		"Confinement":      s.testConfinement,
		"RefusedConfigs":   s.testRefused,
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s.slots <- struct{}{}
			t.Cleanup(func() { <-s.slots })
			test(t)
		})
	}
}

func (s *suite) driver(t testing.TB) vmm.Driver {
	t.Helper()
	return s.newDriver(t)
}
