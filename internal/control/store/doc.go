// Package store holds every row of the control plane and all of its SQL.
//
// A row of a sandbox changes only through Swap, a compare-and-set on its state, generation
// and version: of two writers that read the same row one wins, and the other reads again. A
// row with a ClaimID belongs to one running operation until ClaimDeadline. Rows of templates
// change the same way, through SwapTemplate. A template's name is unique among both types.
//
// On SQLite one connection writes, in immediate transactions, so that a writer waits in Go
// rather than fails with "database is locked"; a pool of query-only connections reads
// beside it (WAL). Commits are synced: what the API has answered survives a power cut.
//
// SQL is kept to what SQLite and PostgreSQL share; storetest is the contract of both.
package store
