package sandbox

import (
	"github.com/roosthq/roost/internal/host/network"
	"github.com/roosthq/roost/internal/host/runtime"
)

// PortOf is the kind of slot that a runtime takes.
func PortOf(rt runtime.Runtime) network.PortKind {
	if rt.Capabilities().TakesNamespace {
		return network.Veth
	}
	return network.Tap
}

// plug puts the slot's port into the spec of one start. unplug lets go of it once the runtime
// has what it needs, or has failed.
func plug(spec *runtime.Spec, slot *network.Slot, rt runtime.Runtime) (unplug func(), err error) {
	spec.Port = runtime.Port{MAC: network.GuestMAC.String()}
	switch caps := rt.Capabilities(); {
	case caps.TakesNamespace:
		spec.Port.Namespace, err = slot.Namespace()
		return func() {}, err
	case caps.OpensTap:
		spec.Port.Namespace, spec.Port.TapName, err = slot.TapFor(spec.UID)
		return func() {}, err
	}
	tap, err := slot.Tap()
	if err != nil {
		return nil, err
	}
	spec.Port.Tap = tap
	return func() { _ = tap.Close() }, nil
}
