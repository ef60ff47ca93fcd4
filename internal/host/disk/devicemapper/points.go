package devicemapper

import "github.com/roosthq/roost/internal/failpoint"

var _ = failpoint.Declare(
	"devicemapper.open.written",
	"devicemapper.attach.begun",
	"devicemapper.attach.level",
	"devicemapper.attach.top",
	"devicemapper.attach.built",
	"devicemapper.detach.removed",
	"devicemapper.publish.link",
	"devicemapper.seal.opened",
	"devicemapper.seal.suspended",
	"devicemapper.seal.loaded",
	"devicemapper.seal.switched",
	"devicemapper.seal.resumed",
	"devicemapper.seal.renamed",
	"devicemapper.seal.trimmed",
	"devicemapper.seal.sync",
)
