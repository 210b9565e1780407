// Positions of tasks and groups, by dagre's layered layout, which keeps groups together. Pure.

import { Graph, layout } from "@dagrejs/dagre"
import type { Structure } from "../api/api.js"

export const NODE_SIZE = { width: 190, height: 62 }
const GROUP_TITLE = 26
const GAP = 22
const RANK_GAP = 46

export interface Box {
  readonly x: number
  readonly y: number
  readonly width: number
  readonly height: number
}

/** Return the box of each node by its id; from top to bottom if `down`, else from left to right. */
export function layOutGraph(structure: Structure, down: boolean): ReadonlyMap<string, Box> {
  const graph = new Graph({ compound: true })
  // Leave room for group titles between nodes. dagre uses `edgesep` as the padding of groups, too.
  const title = structure.groups.length === 0 ? 0 : GROUP_TITLE
  const across = { nodesep: GAP + (down ? 0 : title), edgesep: Math.max(GAP, title) }
  const ranksep = RANK_GAP + (down ? title : 0)
  graph.setGraph({ rankdir: down ? "TB" : "LR", ...across, ranksep, marginx: 8, marginy: 8 + GROUP_TITLE })
  graph.setDefaultEdgeLabel(() => ({}))
  for (const group of structure.groups) graph.setNode(groupNodeId(group.group_id), {})
  for (const group of structure.groups) {
    if (group.parent_id !== null) graph.setParent(groupNodeId(group.group_id), groupNodeId(group.parent_id))
  }
  for (const node of structure.nodes) {
    graph.setNode(node.task_id, { ...NODE_SIZE })
    if (node.group_id !== null) graph.setParent(node.task_id, groupNodeId(node.group_id))
  }
  for (const { source, target } of structure.edges) graph.setEdge(source, target)
  layout(graph)
  return new Map(graph.nodes().map((id) => [id, toBox(graph.node(id), id.startsWith(GROUP_PREFIX))]))
}

const GROUP_PREFIX = "group:"

/** Return the node id of a group. Task ids may be equal to group ids. */
export function groupNodeId(groupId: string): string {
  return `${GROUP_PREFIX}${groupId}`
}

function toBox({ x = 0, y = 0, width = 0, height = 0 }: Partial<Box>, isGroup: boolean): Box {
  const title = isGroup ? GROUP_TITLE : 0
  return { x: x - width / 2, y: y - height / 2 - title, width, height: height + title }
}
