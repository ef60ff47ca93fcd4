package firecracker

import "github.com/roosthq/roost/internal/failpoint"

// The steps of SwitchDisk, in their order. After "done" the VM writes to its new disk.
var _ = failpoint.Declare(
	"firecracker.switch.node",
	"firecracker.switch.done",
	"firecracker.switch.named", // the disk has its name, by which the VMM does not know it yet
)
