package loop

import "github.com/roosthq/roost/internal/failpoint"

var _ = failpoint.Declare(
	"devicemapper.loop.attach",
	"devicemapper.loop.capacity",
	"devicemapper.sparse.truncate",
	"devicemapper.sparse.close",
)
