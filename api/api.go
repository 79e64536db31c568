// Package api holds the typed resources that every part of Croft and every client speaks: servers, networks, images,
// hosts, tenants, events and jobs, with their units and error codes. It does no I/O and knows no transport.
//
// Every resource reads alike: Meta (name, tenant, id, revision, labels), a Spec that the API's users write, and a
// Status that the owning host writes.
package api

import "time"

// Meta is what every resource starts with.
type Meta struct {
	Name     string            `json:"name" doc:"Name, unique among the tenant's resources of this kind: 1 to 63 of a-z, 0-9 and '-', beginning with a letter (RFC 1035 label)."`
	Tenant   string            `json:"tenant,omitempty" doc:"Tenant that owns the resource; absent on hosts and tenants."`
	ID       string            `json:"id" doc:"Identifier that never changes and is never used again (ULID, lower case)."`
	Revision int64             `json:"revision" doc:"Revision of the spec in the store; the ETag of the resource. Grows with each change of the spec."`
	Labels   map[string]string `json:"labels,omitempty" doc:"Free labels, for selection."`
	Created  time.Time         `json:"created" doc:"When the resource was created (RFC 3339)."`
}

// Condition is one aspect of a resource's state, with the reason for it.
type Condition struct {
	Type    string    `json:"type" doc:"Aspect. Of a server: Running; RestartNeeded: a change waits for its next start; ChangeFailed: a change fails, and is tried again. Of a network: Ready: its host has set it up, with the way out that it is to have. Of a host: ReserveKept: guests leave it its reserve; DiskReserveKept: as much of the disk is free; IOLimits: servers' limits of I/O are kept."`
	Status  bool      `json:"status"`
	Reason  string    `json:"reason,omitempty" doc:"Stable CamelCase word for programs."`
	Message string    `json:"message,omitempty" doc:"Sentence for people."`
	Since   time.Time `json:"since"`
}

// Page is one page of a list.
type Page[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next,omitempty" doc:"Cursor of the next page; absent on the last."`
	Total int    `json:"total" doc:"How many items the filter matches in all."`
	AtRev int64  `json:"revision" doc:"Store revision that the page was read at; a watch may start from it."`
}

// Change is one entry of a watch.
type Change[T any] struct {
	Type     ChangeType `json:"type" enum:"put,delete"`
	Revision int64      `json:"revision" doc:"Revision to resume after; 0: there is none yet, more that belongs together follows."`
	Object   T          `json:"object"`
}

type ChangeType string

const (
	ChangePut    ChangeType = "put"
	ChangeDelete ChangeType = "delete"
)
