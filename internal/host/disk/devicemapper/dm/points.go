package dm

import "github.com/roosthq/roost/internal/failpoint"

// One point before each ioctl that changes something.
var _ = failpoint.Declare(
	"devicemapper.ioctl.create",
	"devicemapper.ioctl.load",
	"devicemapper.ioctl.resume",
	"devicemapper.ioctl.suspend",
	"devicemapper.ioctl.rename",
	"devicemapper.ioctl.remove",
)
