package e2e

import (
	"os"
	"testing"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/test/trials"
)

// kind is a runtime under test.
type kind struct {
	name      string
	isolation v1.Isolation
	// virtual: the sandbox is a machine of its own, with a kernel that boots.
	virtual bool
}

// kinds are all that can run on any machine. What is not about the runtime is tested on the
// one that a host without KVM takes by itself: gVisor. Inside the lane it is Firecracker alone
// (make test-firecracker): what a host with KVM takes by itself.
var kinds = kindsHere()

func kindsHere() []kind {
	if os.Getenv(imagesVariable) != "" {
		return []kind{{name: "firecracker", isolation: "hardware", virtual: true}}
	}
	return []kind{
		{name: "gvisor", isolation: "sentry"},
		{name: "qemu", isolation: "emulated", virtual: true},
	}
}

// onEach runs a test on every runtime.
func onEach(t *testing.T, test func(t *testing.T, k kind)) {
	t.Helper()
	t.Parallel()
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			test(t, k)
		})
	}
}

// onSome is onEach in the soak, and with gVisor alone in `make test`: where the runtimes hardly differ,
// virtual machines without KVM take too long.
func onSome(t *testing.T, test func(t *testing.T, k kind)) {
	t.Helper()
	if trials.Soaking() {
		onEach(t, test)
		return
	}
	t.Parallel()
	t.Run(kinds[0].name, func(t *testing.T) { test(t, kinds[0]) })
}

// flags start a host whose sandboxes run in this kind.
func (k kind) flags() []string { return []string{"--runtime", k.name} }
