package sandbox

import "github.com/roosthq/roost/internal/failpoint"

// The steps at which the agent may be killed, in the order in which they are passed. Each has its
// row in the tables of test/e2e/crash_test.go.
var _ = failpoint.Declare(
	// A create: its journal is there; its capture 1 is made of a snapshot's or a source's files.
	"sandbox.create.journaled",
	"sandbox.from.linked",
	"sandbox.from.published",
	// Every start: a slot is taken and not written down, written down; the instance runs and is not
	// written down, written down; before and after the handshake; user processes run.
	"sandbox.start.acquired",
	"sandbox.start.slot",
	"sandbox.start.launched",
	"sandbox.start.recorded",
	"sandbox.start.handshake",
	"sandbox.start.greeted",
	"sandbox.start.thawed",
	"sandbox.settle.written",
	// A pause; the commit is between manifest and renamed.
	"sandbox.pause.marked",
	"sandbox.pause.quiesced",
	"sandbox.pause.frozen",
	"sandbox.pause.captured",
	"sandbox.pause.manifest",
	"sandbox.pause.renamed",
	"sandbox.pause.published",
	"sandbox.pause.stopped",
	"sandbox.pause.written",
	"sandbox.pause.released",
	"sandbox.resume.marked",
	"sandbox.resume.started",
	// A cold resume of what died: its disk is a capture, published, about to start.
	"sandbox.rescue.salvaged",
	"sandbox.rescue.published",
	"sandbox.rescue.marked",
	// A snapshot; the commit is between manifest and published.
	"sandbox.snapshot.marked",
	"sandbox.snapshot.quiesced",
	"sandbox.snapshot.frozen",
	"sandbox.snapshot.captured",
	"sandbox.snapshot.thawed",
	"sandbox.snapshot.linked",
	"sandbox.snapshot.manifest",
	"sandbox.snapshot.published",
	"sandbox.snapshot.written",
	"sandbox.unsnap.renamed",
	"sandbox.fork.captured",
	"sandbox.fork.made",
	"sandbox.template.exported",
	"sandbox.template.named",
	"sandbox.destroy.marked",
	"sandbox.destroy.stopped",
	"sandbox.destroy.renamed",
	"sandbox.destroy.released",
	// A full disk: the journal says that a sandbox is held, its processes are, its machine is; about to
	// go on, it goes on. The reserve is about to be made; a pause has got it.
	"sandbox.fill.marked",
	"sandbox.fill.quiesced",
	"sandbox.fill.frozen",
	"sandbox.fill.thawing",
	"sandbox.fill.thawed",
	"sandbox.fill.reserve",
	"sandbox.fill.released",
)
