package image

import "github.com/roosthq/roost/internal/failpoint"

var _ = failpoint.Declare(
	"image.publish.commit",
	"image.warm.commit",
)
