package network

import "github.com/roosthq/roost/internal/failpoint"

var _ = failpoint.Declare(
	"network.make.far",
	"network.make.named",
	"network.make.namespace",
	"network.make.veth",
	"network.make.wired",
)
