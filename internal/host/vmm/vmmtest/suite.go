package vmmtest

import (
	"os"
	"testing"

	"github.com/roosthq/roost/internal/host/vmm"
)

// suite is the contract against one driver.
type suite struct {
	newDriver func(t testing.TB) vmm.Driver
	fixtures  Fixtures
	slots     chan struct{}
}

// parallelVMs bounds how many tests hold VMs at once; a machine with two cores translates no
// more than that at a useful speed.
const parallelVMs = 2

// Run runs the contract.
func Run(t *testing.T, newDriver func(t testing.TB) vmm.Driver, fixtures Fixtures) {
	if os.Geteuid() != 0 {
		t.Fatal("the vmm contract needs root: namespaces, taps and uids")
	}
	s := &suite{newDriver: newDriver, fixtures: fixtures, slots: make(chan struct{}, parallelVMs)}
	tests := map[string]func(*testing.T){
		"Boot":             s.testBoot,
		"ConsoleIsBounded": s.testConsole,
		"PauseResume":      s.testPauseResume,
		"RestoreTwice":     s.testRestoreTwice,
		"RestorePrepare":   s.testPrepare,
		"RestoreFailure":   s.testRestoreFailure,
		"DiskPersists":     s.testDiskPersists,
		"DiskGrows":        s.testDiskGrows,
		"SwitchUnderWrite": s.testSwitch,
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
